#!/bin/sh
# Pins the distributions of the image with hashes, at the versions of constraints.txt: refresh.sh UV
set -eu
uv=$1
cd "$(dirname "$0")/../.."
python=3.13 # Debian trixie's
compile() {
  "$uv" pip compile --quiet --generate-hashes --constraint constraints.txt --python-version "$python" \
    --python-platform linux --no-emit-index-url --no-annotate --no-header "$@"
}
write() {
  {
    echo "# $2. Refresh with: make constraints"
    cat "$1"
  } >"deploy/image/$3"
}
found=$(mktemp)
trap 'rm -f "$found"' EXIT
# psycopg without its binary, on Debian's libpq; cryptography is Debian's package (see Containerfile).
without="--no-emit-package cryptography --no-emit-package cffi --no-emit-package pycparser"
# shellcheck disable=SC2086  # a list of options
echo psycopg | compile $without pyproject.toml - >"$found"
write "$found" "The distributions of the image, for Python $python" requirements.txt
echo ansible | compile --no-deps - >"$found"
write "$found" "The wheel that contains the collection" collections.txt
echo hatchling | compile - >"$found"
write "$found" "Builds the wheel; not in the image" build-requirements.txt
