#!/usr/bin/env bash
# deploy/containers/check.sh REPOSITORY [BUILDAH-OPTION...]: builds wheel.Containerfile without a registry, on a base made
# from Debian's packages. Then serves the repository like a pod: read-only root and model, one user, no capability.
# Needs root, and Debian's buildah, debootstrap and debian-archive-keyring. The options go to `buildah build`, for example
# --volume /etc/pip.conf:/etc/pip.conf:ro --build-arg TORCH_INDEX=https://index.example.com/simple
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
fail() {
  echo "check.sh: $*" >&2
  exit 2
}

[ $# -ge 1 ] || fail "usage: deploy/containers/check.sh REPOSITORY [BUILDAH-OPTION...]"
repository=$(realpath "$1")
shift
ls "$repository"/*/[0-9]*/checkpoint/config.json >/dev/null 2>&1 || fail "$repository: holds no checkpoint; polyhead-export puts one in"
[ "$(id -u)" -eq 0 ] || fail "needs root"
for program in buildah debootstrap unshare setpriv; do
  command -v "$program" >/dev/null || fail "$program is missing"
done
work=${CHECK_FOLDER:-/var/tmp/polyhead-image-check} # keeps the base and the layers for the next run
mkdir -p -m 700 "$work"
[ -O "$work" ] && [ ! -L "$work" ] || fail "$work: belongs to another user, who could change what root runs from it"
build() { buildah --root "$work/storage" --runroot "$work/run" --storage-driver vfs "$@"; }

if ! build inspect --type image docker.io/library/debian:12-slim >/dev/null 2>&1; then
  echo "check.sh: making debian:12-slim from Debian's packages ..."
  rm -rf "$work/base"
  debootstrap --variant=minbase --force-check-gpg bookworm "$work/base" >"$work/debootstrap.log" || fail "see $work/debootstrap.log"
  base=$(build from scratch)
  build add --quiet "$base" "$work/base" / >/dev/null
  build commit --quiet "$base" docker.io/library/debian:12-slim >/dev/null
  build rm "$base" >/dev/null
  rm -rf "$work/base"
fi
echo "check.sh: building deploy/containers/wheel.Containerfile, log in $work/build.log ..."
(cd "$root" && build build --isolation chroot --pull-never --layers "$@" \
  -f deploy/containers/wheel.Containerfile -t polyhead-image-check . >"$work/build.log" 2>&1) || fail "see $work/build.log"

container=$(build from --pull-never localhost/polyhead-image-check)
tree=$(build mount "$container")
server=
finish() {
  [ -z "$server" ] || { kill -KILL "$server" 2>/dev/null && wait "$server" 2>/dev/null; } || true
  build umount "$container" >/dev/null
  build rm "$container" >/dev/null
}
trap finish EXIT
config() { build inspect --type image --format "{{$1}}" localhost/polyhead-image-check; }
user=$(config .OCIv1.Config.User)
mapfile -t variables < <(config 'range .OCIv1.Config.Env}}{{.}}{{"\n"}}{{end' | grep .)
entry=$(config 'index .OCIv1.Config.Entrypoint 0')
[[ $user =~ ^[1-9][0-9]*:[1-9][0-9]*$ ]] || fail "the image's user must be numbers other than 0, not '$user'"
mkdir -p "$tree/model_repository"

# Does what a container runtime does, in its own mount and process namespaces. Loopback is this machine's.
inside() {
  mount --bind "$tree" "$tree"
  mount -o remount,bind,ro "$tree"
  mount -t proc proc "$tree/proc"
  mount -t tmpfs tmpfs "$tree/tmp"
  mount -t tmpfs tmpfs "$tree/dev"
  for device in null zero random urandom; do
    touch "$tree/dev/$device"
    mount --bind "/dev/$device" "$tree/dev/$device"
  done
  mkdir "$tree/dev/shm"
  mount -t tmpfs -o size=512m tmpfs "$tree/dev/shm"
  chmod 1777 "$tree/tmp" "$tree/dev/shm"
  mount --bind "$repository" "$tree/model_repository"
  mount -o remount,bind,ro "$tree/model_repository"
  exec env -i "${variables[@]}" "$(command -v chroot)" "$tree" /usr/bin/setpriv --reuid "${user%:*}" --regid "${user#*:}" \
    --clear-groups --bounding-set=-all --inh-caps=-all --no-new-privs "$entry" \
    --http-port 18500 --grpc-port 18501 --metrics-port 18502 --probe-port 18503
}
export tree repository user entry
export -f inside
echo "check.sh: serving $repository as user $user ..."
unshare --mount --pid --fork --kill-child bash -euc "variables=($(printf '%q ' "${variables[@]}")); inside" \
  >"$work/serve.log" 2>&1 &
server=$!
for _ in $(seq 240); do
  [ "$(curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:18503/ready)" = 200 ] && break
  kill -0 "$server" 2>/dev/null || { cat "$work/serve.log"; fail "the server ended"; }
  sleep 0.5
done
text='{"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "data": ["Rain."]}], "outputs": [{"name": "PREDICTION"}]}'
model=$(basename "$(dirname "$(ls -d "$repository"/*/config.pbtxt | head -n 1)")")
curl -sf "http://127.0.0.1:18500/v2/models/$model/infer" -d "$text" >"$work/answer.json" || { cat "$work/serve.log"; fail "no answer"; }
grep -q heads "$work/answer.json" || fail "an answer without heads: $(cat "$work/answer.json")"
process=$(pgrep -f -- "--http-port 18500 --grpc-port 18501" | tail -n 1)
grep -q '^CapEff:.*0000000000000000$' "/proc/$process/status" || fail "the server has capabilities"
kill -TERM "$process"
for _ in $(seq 60); do
  kill -0 "$server" 2>/dev/null || break
  sleep 0.5
done
kill -0 "$server" 2>/dev/null && fail "the server did not end"
server=
echo "check.sh: the image answers as user $user, with a read-only root and no capability, and ends on SIGTERM"
