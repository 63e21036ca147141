#!/usr/bin/env bash
# setup/libpython.sh VENV: makes sure that Triton's Python backend finds libpython3.X.so.1.0 of that environment.
# Without root it comes from Debian's package into VENV/lib, where polyhead-serve looks first.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=setup/apt.sh
source "$root/setup/apt.sh"

[ $# -eq 1 ] || fail "usage: setup/libpython.sh VENV"
venv=$1
[ -x "$venv/bin/python" ] || fail "$venv: no environment there; make it with setup/venv.sh"
version=$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
library=libpython$version.so.1.0

# The same places, in the same order, in which polyhead-serve looks.
is_loadable() {
  "$venv/bin/python" - "$library" <<'PYTHON'
import ctypes, pathlib, sys, sysconfig
name = sys.argv[1]
places = [f"{sys.prefix}/lib", f"{sys.base_prefix}/lib", sysconfig.get_config_var("LIBDIR") or "/nonexistent"]
if not any(pathlib.Path(place, name).is_file() for place in places):
    try:
        ctypes.CDLL(name)
    except OSError:
        sys.exit(1)
PYTHON
}

if is_loadable; then
  echo "libpython.sh: $library is there"
  exit
fi
files=$(mktemp -d)
trap 'rm -rf "$files"' EXIT
apt_unpack "libpython$version" "$files"
found=$(find "$files/usr/lib" -name "$library" | head -n 1)
[ -n "$found" ] || fail "Debian's libpython$version holds no $library; install $library for Python $version yourself"
cp -L "$found" "$venv/lib/$library"
is_loadable || fail "$venv/lib/$library: cannot be loaded"
echo "libpython.sh: put $library into $venv/lib"
