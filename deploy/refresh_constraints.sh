#!/bin/sh
# Pins every dependency for every supported Python: refresh_constraints.sh BIN
set -eu
bin=$1
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
"$bin/python" -m venv "$tools"
"$tools/bin/python" -m pip --quiet --disable-pip-version-check install uv
"$tools/bin/uv" pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.11 --all-extras \
  --no-emit-index-url --no-annotate --no-header --output-file "$tools/constraints"
{
  echo "# Every dependency, pinned for Python 3.11 to 3.13. Refresh with: make constraints"
  cat "$tools/constraints"
} > constraints.txt
deploy/image/refresh.sh "$tools/bin/uv"
