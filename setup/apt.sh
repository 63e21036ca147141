# Debian packages without root: downloaded into a private folder and unpacked, never installed. Sourced, not run.

fail() {
  echo "$(basename "$0"): $*" >&2
  exit 2
}

# apt_unpack PACKAGE FOLDER: unpacks the package's files below the folder.
apt_unpack() {
  local package=$1 folder=$2 work
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
    fail "$package: needs apt-get and dpkg-deb, which this system lacks; install the equivalent of $package"
  work=$(mktemp -d)
  mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial"
  # Private state and cache need no root. Root must not hand the download to the user _apt, who may not enter the folder.
  local options=(
    -o "Dir::State=$work/state" -o "Dir::Cache=$work/cache" -o "Dir::State::status=/var/lib/dpkg/status"
    -o "APT::Sandbox::User=$(id -un)" -o Acquire::Languages=none -o Acquire::Retries=3
  )
  echo "$(basename "$0"): reading Debian's package lists ..."
  # A broken third-party source is no reason to stop: the download tells whether the lists are good enough.
  apt-get "${options[@]}" -qq update || echo "$(basename "$0"): some package lists could not be read, going on"
  echo "$(basename "$0"): downloading $package ..."
  (cd "$work" && apt-get "${options[@]}" -qq download "$package") ||
    { rm -rf "$work"; fail "apt cannot get $package; is this Debian with that Python, and the network up?"; }
  dpkg-deb -x "$work"/"$package"_*.deb "$folder"
  rm -rf "$work"
}
