#!/usr/bin/env bash
# setup/operations.sh FOLDER VENV: unpacks into FOLDER what the tests of deploy/ need beside .venv: Debian's Prometheus
# with promtool, and the models that KServe generates from its API (without the dependencies of kserve's server).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=setup/apt.sh
source "$root/setup/apt.sh"

[ $# -eq 2 ] || fail "usage: setup/operations.sh FOLDER VENV"
folder=$(realpath -m "$1")
python=$(realpath -s "$2")/bin/python
rm -rf "$folder"
mkdir -p "$folder"
apt_unpack prometheus "$folder"
"$folder/usr/bin/promtool" --version >/dev/null 2>&1 || fail "$folder/usr/bin/promtool does not run here"
echo "kserve==0.21.0 --hash=sha256:df9bc5888704d9085015e08f1a8fced5ff0698f3becc6212d4e7b8234c71623b" >"$folder/pin"
"$python" -m pip install --disable-pip-version-check --quiet --no-deps --only-binary=:all: --require-hashes \
  --target "$folder/kserve" -r "$folder/pin"
echo "operations.sh: $folder is ready"
