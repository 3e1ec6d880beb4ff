#!/bin/sh
# Tests the collection as a user installs it: collection_test.sh BIN. First the tests that `make test` also runs (build,
# installation without network, documentation, plays by full name), then `ansible-test sanity` on the installed archive.
# The sanity tests install their tools from a package registry and take about three minutes.
set -eu
bin=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

"$bin/python" -m pytest -v tests/unit/deploy/test_collection.py tests/playbooks/test_installed_collection.py

archive=$("$bin/python" deploy/build_collection.py "$scratch")
python_version=$("$bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
site_packages=$("$bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
ANSIBLE_COLLECTIONS_PATH=$site_packages "$bin/ansible-galaxy" collection install --offline -p "$scratch/collections" "$archive"

# ansible-test creates its virtual environments with get-pip.py, which it downloads unless the file is in this folder of
# HOME. This one installs the pip that Python contains, so that only a package registry is needed.
export HOME="$scratch/home"
cache="$HOME/.ansible/test/cache"
mkdir -p "$cache"
pip_version=$(sed -n "s/^ *pip='\([0-9.]*\)',\$/\1/p" "$site_packages/ansible_test/_internal/python_requirements.py" | head -1)
cat >"$cache/get_pip_$(echo "$pip_version" | tr . _).py" <<'PY'
import ensurepip

ensurepip.bootstrap()
PY

cd "$scratch/collections/ansible_collections/agent_smith/proxmox"
# Only the version of BIN: the others that ansible-test supports need not be on this machine.
PATH="$bin:$PATH" ansible-test sanity --local --python "$python_version" --color no
