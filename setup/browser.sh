#!/usr/bin/env bash
# setup/browser.sh FOLDER: unpacks Debian's headless Chromium into FOLDER, without root, for the tests of the pages that
# polyhead-evaluate and polyhead-compare write. FOLDER/browser starts it.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=setup/apt.sh
source "$root/setup/apt.sh"

[ $# -eq 1 ] || fail "usage: setup/browser.sh FOLDER"
folder=$(realpath -m "$1")
rm -rf "$folder"
mkdir -p "$folder"
apt_unpack chromium-headless-shell "$folder" all
program=$(find "$folder/usr/lib/chromium" -maxdepth 1 -name '*headless*shell' -type f | head -1)
[ -n "$program" ] || fail "the package chromium-headless-shell holds no headless shell"
libraries=$(find "$folder" -name '*.so*' -printf '%h\n' | sort -u | paste -sd:)
cat >"$folder/browser" <<END
#!/usr/bin/env bash
export LD_LIBRARY_PATH='$libraries'
exec '$program' "\$@"
END
chmod +x "$folder/browser"
"$folder/browser" --version || fail "$program does not run here; a library may be missing"
echo "browser.sh: $folder/browser is ready"
