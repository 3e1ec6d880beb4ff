#!/bin/bash
# Builds a release in dist/: release.sh BIN. Wheels and source archives of the executor and the lab, SBOM of the image,
# checksums; IMAGE=1 adds the image's archive. The same commit gives the same files. Then tag the commit `v<version>`.
set -euo pipefail
bin=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT

fail() {
  echo "release.sh: $*" >&2
  exit 1
}

# A release needs a commit to build from, a section in the changelog, and a recorded database of its schema, for the
# upgrade test of the next version (tests/integration/database/test_upgrade.py).
[ -n "${DRY_RUN:-}" ] || [ -z "$(git status --porcelain)" ] || fail "there are uncommitted changes (DRY_RUN=1 builds anyway)"
[ -n "${DRY_RUN:-}" ] || grep -q "^## \[$version\]" CHANGELOG.md || fail "CHANGELOG.md has no section [$version]"
schema=$("$bin/python" -c 'from executor.database.schema import head_revision; print(head_revision())')
[ -n "${DRY_RUN:-}" ] || { [ -f "tests/data/databases/$schema.sqlite.sql" ] &&
  grep -q "\"schema\": \"$schema\"" tests/data/recorded_commits.json; } ||
  fail "schema $schema is not recorded: $bin/python tests/support/recorded_databases.py 'Release $version'"

SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
rm -rf dist
"$bin/python" -m hatchling build -d dist
(cd lab && "$bin/python" -m hatchling build -d ../dist)

# The SBOM of the image.
"$bin/python" -m venv "$tools"
if "$tools/bin/python" -m pip --quiet --disable-pip-version-check install cyclonedx-bom; then
  deploy/parts_list.sh "$tools/bin" "dist/agent-smith-$version.cdx.json"
else
  echo "NOTE: cyclonedx-bom cannot be installed here: no SBOM" >&2
fi
# Without a layer cache: cached layers have the timestamp and the packages of another commit.
[ -z "${IMAGE:-}" ] || IMAGE_CACHE_DIR=$tools/image IMAGE_ARCHIVE=$PWD/dist/agent-smith-$version-image.tar.gz deploy/image/build.sh

(cd dist && sha256sum -- * >SHA256SUMS)
cat dist/SHA256SUMS
