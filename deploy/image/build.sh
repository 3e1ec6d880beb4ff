#!/bin/bash
# Builds the image from Debian's packages and the package index; prints its size and start time. Settings: see lib.sh.
# IMAGE_ARCHIVE=FILE also writes the image to a file that podman and docker can load.
set -euo pipefail
# shellcheck source=deploy/image/lib.sh
. "$(dirname "$0")/lib.sh"
trap clean_up EXIT

install_tools
open_storage
make_base
choose_mode
gather_secrets
say "building ($mode, $driver)"
build_image "$image:latest" "$project"
say "built $image:latest, $(image_size)"
show_layers
say "$(podman save --quiet --format oci-archive "$image:latest" | wc -c | awk '{printf "%d MB", $1 / 1e6}') as it is pushed, compressed"
show_start_time
if [ -n "${IMAGE_ARCHIVE:-}" ]; then
  podman save --format docker-archive "$image:latest" | gzip -n >"$IMAGE_ARCHIVE"
  say "wrote $IMAGE_ARCHIVE"
fi
[ -n "${BASE_IMAGE:-}" ] || say "NOTE: the base image is a local one with this machine's package mirror; to publish, build with BASE_IMAGE=published"
