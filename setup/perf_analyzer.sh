#!/usr/bin/env bash
# setup/perf_analyzer.sh FOLDER VENV: puts Triton's load generator into FOLDER. It is inside tritonclient's manylinux
# wheel; the two libraries that it lacks come with the tritonserver in VENV.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=setup/apt.sh
source "$root/setup/apt.sh"

[ $# -eq 2 ] || fail "usage: setup/perf_analyzer.sh FOLDER VENV"
folder=$(realpath -m "$1")
python=$(realpath -s "$2")/bin/python
libraries=$("$python" -c 'import pathlib, pytriton; print(pathlib.Path(pytriton.__file__).parents[1] / "nvidia_pytriton.libs")')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "tritonclient==2.50.0 --hash=sha256:421fbb69ae6ab8cdb2c35b82134fcef2fe11e7af7718b1fcbc53335ab9bfe889" >"$work/pin"
"$python" -m pip download --disable-pip-version-check --quiet --no-deps --only-binary=:all: --require-hashes \
  --platform manylinux1_x86_64 --dest "$work" -r "$work/pin"
"$python" -m zipfile -e "$work"/tritonclient-*.whl "$work"
rm -rf "$folder"
mkdir -p "$folder/lib"
install -m 755 "$work"/tritonclient-*.data/data/bin/perf_analyzer "$folder/perf_analyzer"
cp "$libraries"/libb64-*.so.0d "$folder/lib/libb64.so.0d"
cp "$libraries"/libcudart-*.so.12.* "$folder/lib/libcudart.so.12"
LD_LIBRARY_PATH=$folder/lib "$folder/perf_analyzer" --version >/dev/null 2>&1 || fail "$folder/perf_analyzer does not run here"
echo "perf_analyzer.sh: $folder/perf_analyzer is ready"
