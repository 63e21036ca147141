#!/usr/bin/env bash
# setup/gpu_bundle.sh DIR: collects in DIR what benchmarks/gpu_check.py needs on a Linux x86-64 machine with a torch image,
# Python 3.12 and no network.
#   DIR/site/*.whl      packages beside torch and NumPy; gpu_check.py takes those that are missing there
#   DIR/server/         a tritonserver with its Python 3.12 backend, and NumPy 1.26, which that backend needs
#   DIR/texts.jsonl     2,000 Debian texts, if data/debian is there
# LIBPYTHON=/path/to/libpython3.12.so.1.0 goes into DIR/server too, for an image whose Python has no shared library.
# All of it is about 200 MB. ONLY="name ..." takes no other packages, if it is known what the image lacks; NumPy and the
# server alone are 65 MB, and WITHOUT_SERVER=1 leaves them out.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=setup/apt.sh
source "$root/setup/apt.sh"

[ $# -eq 1 ] || fail "usage: setup/gpu_bundle.sh DIR"
mkdir -p "$1"
dir=$(realpath "$1")
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$python" ] || python=python3

download() { # DIR NAME...
  local to=$1 platforms=() version
  shift
  for version in 2_35 2_34 2_31 2_28 2_27 2_26 2_24 2_17; do platforms+=(--platform "manylinux_${version}_x86_64"); done
  "$python" -m pip download -c "$root/constraints.txt" --disable-pip-version-check --quiet --no-deps --dest "$to" \
    --only-binary=:all: --python-version 3.12 --implementation cp "${platforms[@]}" \
    --platform manylinux2014_x86_64 --platform manylinux1_x86_64 --platform any "$@"
}

pins=()
while read -r name; do
  [[ -n "${ONLY:-}" && " $ONLY " != *" $name "* ]] && continue
  pins+=("$(grep -i "^${name//[-_]/[-_]}==" "$root/constraints.txt" || fail "$name: constraints.txt has no version")")
done < <(sed 's/#.*//; /^ *$/d' "$root/setup/requirements-gpu.txt")
rm -rf "$dir/site" "$dir/server"
download "$dir/site" "${pins[@]}"

if [ -z "${WITHOUT_SERVER:-}" ]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  download "$dir/server" numpy==1.26.4
  download "$work" "$(grep '^nvidia-pytriton==' "$root/setup/requirements-triton.txt")"
  mkdir "$work/server"
  (cd "$work/server" && "$python" -m zipfile -e "$work"/nvidia_pytriton-*.whl .)
  rm -rf "$work"/server/pytriton/tritonserver/python_backend_stubs/3.{8,9,10,11,13} \
    "$work"/server/nvidia_pytriton.libs/libpython3-*
  tar -C "$work/server" -cJf "$dir/server/tritonserver.tar.xz" .
fi
if [ -n "${LIBPYTHON:-}" ] && [ -d "$dir/server" ]; then
  cp "$LIBPYTHON" "$dir/server/libpython3.12.so.1.0"
  strip --strip-unneeded "$dir/server/libpython3.12.so.1.0" || true # it is only larger with its symbols
fi
if [ -f "$root/data/debian/test.jsonl" ]; then
  head -n 2000 "$root/data/debian/test.jsonl" >"$dir/texts.jsonl"
fi
du -sh "$dir"
