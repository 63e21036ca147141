# Debian packages without root: downloaded into a private folder and unpacked, never installed. Sourced, not run.

fail() {
  echo "$(basename "$0"): $*" >&2
  exit 2
}

# apt_unpack PACKAGE FOLDER [all]: unpacks the package's files below the folder; with `all`, also those of every package
# that it needs and that is not installed.
apt_unpack() {
  local package=$1 folder=$2 packages=$1 work
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
  if [ "${3:-}" = all ]; then
    packages=$(apt-get "${options[@]}" --simulate --no-install-recommends install "$package" | awk '/^Inst / {print $2}')
    packages=${packages:-$package}
  fi
  echo "$(basename "$0"): downloading $package ..."
  # shellcheck disable=SC2086 # one word per package
  (cd "$work" && apt-get "${options[@]}" -qq download $packages) ||
    { rm -rf "$work"; fail "apt cannot get $package; is this Debian with that Python, and the network up?"; }
  local file
  for file in "$work"/*.deb; do dpkg-deb -x "$file" "$folder"; done
  rm -rf "$work"
}
