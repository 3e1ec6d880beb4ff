#!/bin/sh
# Tests the pages in headless Chromium: browser_test.sh BIN [FILE...]. It needs Node.js 20 or later with npm; Chromium,
# nginx and Caddy are installed from the distribution's packages if this runs as root. Nothing is skipped.
set -eu
bin=$1
shift
cache=$PWD/.cache/browser
missing=""
command -v chromium >/dev/null || missing="$missing chromium"
for program in nginx caddy; do
  [ -x "/usr/sbin/$program" ] || [ -x "/usr/bin/$program" ] || missing="$missing $program"
done
if [ -n "$missing" ]; then
  if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "these programs are missing, install them as root:$missing" >&2
    exit 1
  fi
  echo "installing:$missing"
  # Their packages would start servers on the usual ports.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e $policy ]; then
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy
  fi
  apt-get update -qq
  # shellcheck disable=SC2086  # a list of packages
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi
command -v npm >/dev/null || { echo "Node.js with npm is missing: install version 20 or later" >&2; exit 1; }
mkdir -p "$cache"
if ! cmp -s tests/browser/package-lock.json "$cache/package-lock.json"; then
  cp tests/browser/package.json tests/browser/package-lock.json tests/browser/.npmrc "$cache"
  rm -rf "$cache/node_modules"
  (cd "$cache" && npm ci --silent) || { rm -f "$cache/package-lock.json"; echo "npm ci has failed" >&2; exit 1; }
fi
PYTHONPATH=tests "$bin/python" -m browser.run "$cache/node_modules" "$cache/screenshots" "$@"
