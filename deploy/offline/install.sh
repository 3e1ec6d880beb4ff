#!/bin/sh
# Installs Agent Smith from this bundle without network: install.sh TARGET_FOLDER [--with-lab]
# Creates a virtual environment in TARGET_FOLDER, or upgrades the one that is there. PYTHON names the interpreter
# (default: the first of python3.x and python3 that has the bundle's version). --with-lab also installs the lab.
set -eu
umask 022 # the service's user must be able to read the installation

fail() {
  echo "install.sh: $*" >&2
  exit 1
}

usage() {
  echo "usage: install.sh TARGET_FOLDER [--with-lab]" >&2
  exit 2
}

target=""
folders="wheels"
for argument in "$@"; do
  case $argument in
    --with-lab) folders="wheels lab" ;;
    -*) usage ;;
    *) [ -z "$target" ] || usage; target=$argument ;;
  esac
done
[ -n "$target" ] || usage
case $target in /*) ;; *) target=$PWD/$target ;; esac
cd "$(dirname "$0")"

echo "Verifying the checksums"
[ -f SHA256SUMS ] || fail "the bundle is damaged: it has no file SHA256SUMS"
differing=$(sha256sum --check --quiet SHA256SUMS 2>/dev/null) ||
  fail "the bundle is damaged; nothing was installed. These files differ from SHA256SUMS:
$differing"

# What the bundle contains, and what its wheels were built for.
version="" python="" machine=""
# shellcheck source=/dev/null
. ./bundle.conf

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

find_interpreter() {
  for candidate in "${PYTHON:-python$python}" "${PYTHON:-python3}"; do
    if [ "$(version_of "$candidate")" = "$python" ]; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

[ "$(uname -m)" = "$machine" ] || fail "this bundle is for $machine, and this machine is $(uname -m)"
interpreter=$(find_interpreter) ||
  fail "this bundle needs Python $python, and ${PYTHON:-python3} is Python $(version_of "${PYTHON:-python3}" || echo "(not found)").
Name an interpreter with PYTHON=..., or use the bundle for your version of Python."

if [ -f "$target/pyvenv.cfg" ]; then
  [ "$(version_of "$target/bin/python")" = "$python" ] ||
    fail "the virtual environment $target does not have Python $python; name a new folder"
elif [ -d "$target" ] && [ -n "$(ls -A "$target")" ]; then
  fail "$target is neither empty nor a virtual environment"
fi

echo "Installing Agent Smith $version into $target"
"$interpreter" -m venv "$target" || fail "cannot create a virtual environment; Debian needs the package python3-venv"
smith_python=$target/bin/python
pip() { "$smith_python" -m pip --isolated --disable-pip-version-check --quiet "$@"; }
# Exactly the files that SHA256SUMS lists, so that an upgrade leaves no older version of a dependency.
for folder in $folders; do
  # shellcheck disable=SC2046  # names of wheels contain no spaces
  pip install --no-index --no-deps $(sed -n "s|^[0-9a-f]*  \($folder/.*\.whl\)\$|\1|p" SHA256SUMS)
done
pip check

home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
site_packages=$("$smith_python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$smith_python" install_collection.py collections/community-proxmox-*.zip
LC_ALL=C.UTF-8 ANSIBLE_HOME=$home ANSIBLE_COLLECTIONS_PATH=$site_packages "$target/bin/ansible-galaxy" collection install \
  --offline --force --collections-path "$site_packages" "collections/agent_smith-proxmox-$version.tar.gz" >"$home/log" 2>&1 ||
  { cat "$home/log" >&2; fail "cannot install the collection agent_smith.proxmox"; }

"$target/bin/smith" version
