#!/usr/bin/env bash
# setup/nginx.sh FOLDER: unpacks Debian's nginx and njs into FOLDER, without root, for the tests of deploy/nginx.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=setup/apt.sh
source "$root/setup/apt.sh"

[ $# -eq 1 ] || fail "usage: setup/nginx.sh FOLDER"
folder=$(realpath -m "$1")
rm -rf "$folder"
mkdir -p "$folder"
apt_unpack nginx "$folder"
apt_unpack libnginx-mod-http-js "$folder"
missing=$(ldd "$folder/usr/sbin/nginx" "$folder/usr/lib/nginx/modules/ngx_http_js_module.so" | awk '/not found/ {print $1}')
[ -z "$missing" ] || fail "nginx needs $missing, which is not on this system; install Debian's nginx, or its libraries"
"$folder/usr/sbin/nginx" -v
echo "nginx.sh: $folder/usr/sbin/nginx is ready"
