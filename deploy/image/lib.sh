# shellcheck shell=bash disable=SC2034
# Functions of build.sh and test.sh, to be sourced: podman with its own storage and settings, separate from those of the
# machine, and a local base image made from Debian's packages, so that no registry is needed.
#
#   IMAGE_CACHE_DIR  folder for storage and layers between calls (default: one in the temporary folder)
#   BASE_IMAGE       base image to pull from its registry, instead of the local one; `published`: that of the Containerfile
#   IMAGE_DRIVER     overlay or vfs (default: overlay, or vfs if overlay does not work)
#   IMAGE_MODE       podman or chroot (default: podman, or chroot if no container can run)

work=$(mktemp -d)
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=${IMAGE_CACHE_DIR:-${TMPDIR:-/tmp}/agent-smith-image-$(id -u)}
image=localhost/agent-smith
local_base=localhost/agent-smith-base:trixie
local_base_days=7

say() { printf '%5d s  %s\n' "$SECONDS" "$*"; }
fail() {
  echo "FAILED: $*" >&2
  exit 1
}

install_tools() {
  local missing=() tool
  for tool in podman runc curl; do command -v "$tool" >/dev/null || missing+=("$tool"); done
  command -v ip >/dev/null || missing+=(iproute2)
  [ -n "${BASE_IMAGE:-}" ] || command -v mmdebstrap >/dev/null || missing+=(mmdebstrap)
  if [ ${#missing[@]} -gt 0 ]; then
    [ "$(id -u)" = 0 ] || fail "missing: ${missing[*]}; only root can install them"
    command -v apt-get >/dev/null || fail "missing: ${missing[*]}; no apt-get here to install them with"
    say "installing: ${missing[*]}"
    if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >"$work/apt.log" 2>&1; then
      tail -20 "$work/apt.log"
      fail "cannot install ${missing[*]}"
    fi
  fi
  # Without root, mmdebstrap could work in a user namespace, but the tests could not create a network namespace.
  [ "$(id -u)" = 0 ] || [ -n "${BASE_IMAGE:-}" ] || fail "only root can make the local base image; or set BASE_IMAGE"
}

open_storage() {
  [ -d "$cache" ] || (umask 077 && mkdir -p "$cache")
  [ -O "$cache" ] || fail "$cache belongs to another user; set IMAGE_CACHE_DIR"
  exec 9>"$cache/lock"
  flock -w 900 9 || fail "another build uses $cache"
  local files
  files=$(ulimit -Hn)
  [ "$files" != unlimited ] || files=65536
  # podman sets a limit of open files that needs CAP_SYS_RESOURCE; crun refuses hybrid cgroups; without systemd there is
  # no journal. tmp_dir and runroot are next to the storage, whose database stores their paths.
  cat >"$work/containers.conf" <<CONF
[containers]
default_ulimits = ["nofile=$files:$files", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = "$cache/run/libpod"
CONF
  export CONTAINERS_CONF=$work/containers.conf CONTAINERS_STORAGE_CONF=$work/storage.conf TMPDIR=$work
  use_driver "${IMAGE_DRIVER:-overlay}"
  if [ -z "${IMAGE_DRIVER:-}" ] && ! podman info >"$work/info" 2>&1; then
    tail -3 "$work/info"
    say "NOTE: overlay storage does not work here, using vfs, which is slow and large"
    use_driver vfs
  fi
}

use_driver() {
  driver=$1
  printf '[storage]\ndriver = "%s"\ngraphroot = "%s/%s"\nrunroot = "%s/run"\n' \
    "$driver" "$cache" "$driver" "$cache" >"$CONTAINERS_STORAGE_CONF"
}

# For a trap on EXIT.
clean_up() {
  local code=$?
  close_storage
  rm -rf "$work"
  exit "$code"
}

close_storage() {
  podman image unmount --all --force >/dev/null 2>&1 || true
  umount "$cache/overlay/overlay" 2>/dev/null || true
  # Without systemd nothing else removes these folders.
  find /sys/fs/cgroup/*/libpod_parent -depth -type d -exec rmdir {} \; 2>/dev/null || true
}

make_base() {
  if [ -n "${BASE_IMAGE:-}" ]; then
    base=$BASE_IMAGE
    [ "$base" != published ] || base=$(sed -n 's/^ARG BASE_IMAGE=//p' "$project/Containerfile")
    podman image exists "$base" || podman pull --quiet "$base" >/dev/null
    say "base: $base"
    return
  fi
  base=$local_base
  if podman image exists "$base" && [ -z "$(find "$cache/local-base" -mtime +$local_base_days 2>/dev/null)" ]; then
    say "base: the local one of $(date -r "$cache/local-base" +%F)"
    return
  fi
  say "base: making a local one from Debian's packages (BASE_IMAGE=published uses the published one)"
  mmdebstrap --quiet --variant=minbase --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/info/*' --dpkgopt='path-exclude=/usr/share/lintian/*' \
    --dpkgopt='path-include=/usr/share/doc/*/copyright' trixie - "$(mirror)" >"$work/base.tar" 2>"$work/base.log" ||
    { tail -20 "$work/base.log"; fail "mmdebstrap"; }
  podman import --quiet --change 'CMD ["bash"]' --change "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
    "$work/base.tar" "$base" >/dev/null
  rm "$work/base.tar"
  touch "$cache/local-base"
}

# Print the package mirror of this machine; the image is made from the same one.
mirror() {
  local found
  found=$(awk '/^URIs:/{print $2; exit}' /etc/apt/sources.list.d/*.sources 2>/dev/null || true)
  [ -n "$found" ] || found=$(awk '$1=="deb"{for(i=2;i<=NF;i++) if($i ~ /^https?:/){print $i; exit}}' /etc/apt/sources.list)
  [ -n "$found" ] || fail "apt's sources contain no mirror for the local base image"
  echo "$found"
}

choose_mode() {
  mode=${IMAGE_MODE:-}
  if [ -z "$mode" ]; then
    mode=podman
    if ! podman run --rm --network=none "$base" true >"$work/probe" 2>&1; then
      mode=chroot
      cat "$work/probe"
      say "NOTE: no container can run here, using chroot: limits and seccomp are not tested"
    fi
  fi
  isolation=()
  [ "$mode" != chroot ] || isolation=(--isolation=chroot)
  layers=()
  [ "$driver" != vfs ] || layers=(--layers=false)
}

# CA and package index for pip, as build secrets. One contains a canary that the tests search for in the layers.
gather_secrets() {
  local ca=${PIP_CERT:-${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}}
  [ -s "$cache/canary" ] || (umask 077 && head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$cache/canary")
  {
    printf '# canary-%s\n[global]\n' "$(cat "$cache/canary")"
    [ -z "${PIP_INDEX_URL:-}" ] || printf 'index-url = %s\n' "$PIP_INDEX_URL"
  } >"$work/pip.conf"
  secrets=(--secret "id=pip_conf,src=$work/pip.conf")
  [ ! -s "$ca" ] || secrets+=(--secret "id=ca_bundle,src=$ca")
}

# Print the version that the image's label states: that of the executor's wheel.
project_version() { sed -n 's/^version = "\(.*\)"/\1/p' "$project/pyproject.toml"; }

# build_image TAG [more arguments of podman build]
build_image() {
  local tag=$1 version revision time
  shift
  version=$(project_version)
  revision=$(git -C "$project" rev-parse HEAD 2>/dev/null || echo unknown)
  time=${SOURCE_DATE_EPOCH:-$(git -C "$project" log -1 --format=%ct 2>/dev/null || echo 0)}
  # --network=host: podman's bridge would change the firewall of this machine.
  if ! podman build "${isolation[@]}" "${layers[@]}" "${secrets[@]}" --pull=never --network=host --format docker \
    --timestamp "$time" --build-arg "BASE_IMAGE=$base" --build-arg "VERSION=$version" \
    --build-arg "REVISION=$revision" --tag "$tag" "$@" >"$work/build.log" 2>&1; then
    tail -40 "$work/build.log"
    fail "podman build of $tag"
  fi
}

image_size() {
  podman image inspect --format '{{.Size}}' "$image:latest" | awk '{printf "%d MB", $1 / 1e6}'
}

show_layers() {
  podman image history --format '{{.Size}}\t{{.CreatedBy}}' "$image:latest" | awk -F'\t' '$1 !~ /^0 ?B$/ {printf "          %-9s %.90s\n", $1, $2}'
}

milliseconds() { echo $(($(date +%s%N) / 1000000)); }

# Print how long a container takes until it logs agent_ready, and how much of that is importing the program. FulcrumCore
# and Proxmox are not reachable: readiness does not depend on them.
show_start_time() {
  [ "$mode" = podman ] || return 0
  local name=agent-smith-test-start-$$ options before imported ready
  options=(--network=none --no-healthcheck --read-only)
  before=$(milliseconds)
  podman run --rm "${options[@]}" "$image:latest" python3 -c 'import executor.cli.app, executor.composition'
  imported=$(($(milliseconds) - before))
  before=$(milliseconds)
  podman run --detach --name "$name" "${options[@]}" --env FULCRUM_API_URL=http://127.0.0.1:9 --env FULCRUM_API_TOKEN=unused \
    --env PROXMOX_HOST=127.0.0.1 --env PROXMOX_USER=unused@pve --env PROXMOX_PASSWORD=unused --env SMITH_HTTP_ADDR=off \
    "$image:latest" >/dev/null
  until podman logs "$name" 2>&1 | grep '"agent_ready"' >/dev/null; do
    [ $(($(milliseconds) - before)) -lt 60000 ] || { podman logs "$name"; fail "no agent_ready event within a minute"; }
    sleep 0.05
  done
  ready=$(($(milliseconds) - before))
  podman rm --force --volumes --time 2 "$name" >/dev/null 2>&1 || true
  say "ready in $ready ms; a container that only imports the program takes $imported ms"
}
