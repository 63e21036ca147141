#!/usr/bin/env bash
# setup/venv.sh VENV REQUIREMENTS...: makes a virtual environment and installs requirement files, pinned by constraints.txt.
# CONSTRAINTS names another file of pins; /dev/null for a requirements file that pins everything itself. constraints.txt
# also pins pip and what builds our packages, which pip installs apart.
# Works without root on a bare Debian, whose python3 comes without ensurepip. PYTHON picks the interpreter.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=setup/apt.sh
source "$root/setup/apt.sh"

[ $# -ge 2 ] || fail "usage: setup/venv.sh VENV REQUIREMENTS..."
venv=$(realpath -m -s "$1")
shift

is_supported() {
  "$1" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null
}

pick_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    is_supported "$PYTHON" || fail "PYTHON=$PYTHON: must be a Python 3.11 or 3.12"
    echo "$PYTHON"
    return
  fi
  for candidate in python3.11 python3.12 python3; do
    if is_supported "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  fail "no Python 3.11 or 3.12 found; install one, or name it: PYTHON=/path/to/python3.11"
}

make_venv() {
  local python wheels
  python=$(pick_python)
  echo "venv.sh: making $venv with $("$python" --version) ..."
  rm -rf "$venv"
  "$python" -m venv "$venv" >/dev/null 2>&1 && return
  echo "venv.sh: this Python has no ensurepip; taking pip from Debian's package python3-pip-whl"
  rm -rf "$venv"
  "$python" -m venv --without-pip "$venv"
  wheels=$(mktemp -d)
  apt_unpack python3-pip-whl "$wheels"
  # A wheel is a zip that Python can run from.
  "$venv/bin/python" "$(echo "$wheels"/usr/share/python-wheels/pip-*.whl)/pip" \
    install --quiet --no-index "$wheels"/usr/share/python-wheels/pip-*.whl
  rm -rf "$wheels"
}

if ! { is_supported "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1; }; then
  make_venv
fi
arguments=()
for file in "$@"; do
  [ -f "$file" ] || fail "$file: no such requirements file"
  arguments+=(-r "$(realpath "$file")")
done
echo "venv.sh: installing $* into $venv (minutes on a first run) ..."
cd "$root" # requirement files name our own packages relative to it
"$venv/bin/python" -m pip install --disable-pip-version-check --quiet -c constraints.txt pip
"$venv/bin/python" -m pip install --disable-pip-version-check -c "${CONSTRAINTS:-constraints.txt}" \
  --build-constraint constraints.txt "${arguments[@]}"
echo "venv.sh: $venv is ready"
