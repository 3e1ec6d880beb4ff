#!/bin/sh
# Makes a virtual environment with the executor, the lab and the development tools: setup.sh PYTHON VENV
set -eu
python=$1
venv=$2

"$python" - <<'PY' || { echo "Agent Smith needs Python 3.11, 3.12 or 3.13; name one with PYTHON=..." >&2; exit 1; }
import sys
sys.exit(not ((3, 11) <= sys.version_info[:2] <= (3, 13)))
PY

echo "Creating $venv with $("$python" --version) (a minute or two the first time)"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip="$venv/bin/python -m pip --disable-pip-version-check --quiet"
$pip install -c constraints.txt -e '.[postgres,dev]' -e ./lab

wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
$pip download --no-deps -c constraints.txt -d "$wheels" ansible
"$venv/bin/python" deploy/install_collection.py "$wheels"/ansible-*.whl
