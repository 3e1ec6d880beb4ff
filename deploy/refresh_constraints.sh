#!/bin/sh
# Pins every dependency of both distributions for every supported Python: refresh_constraints.sh BIN
set -eu
bin=$1
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
"$bin/python" -m venv "$tools"
"$tools/bin/python" -m pip --quiet --disable-pip-version-check install uv
printf '%s\n' '-e .[collections,dev,postgres]' '-e ./lab' |
  "$tools/bin/uv" pip compile - --quiet --upgrade --universal --python-version 3.11 --no-emit-index-url --no-annotate \
    --no-header --no-emit-package agent-smith --no-emit-package agent-smith-lab --output-file "$tools/constraints"
{
  echo "# Every dependency, pinned for Python 3.11 to 3.13. Refresh with: make constraints"
  cat "$tools/constraints"
} > constraints.txt
deploy/image/refresh.sh "$tools/bin/uv"
