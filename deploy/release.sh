#!/bin/bash
# Builds a release in dist/, or in the folder DIST, whose content it replaces: release.sh BIN. Wheels and source archives
# of the executor and the lab, the archive of the collection, the image's archive (IMAGE=0: without it) and SBOM, the
# bundle for machines without network and its SBOM, checksums. The same commit gives the same files. Then tag the commit
# `v<version>`.
set -euo pipefail
bin=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
dist=$(realpath -m "${DIST:-dist}")
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT

fail() {
  echo "release.sh: $*" >&2
  exit 1
}

# One version for both wheels, the collection and the image.
version=$("$bin/python" deploy/versions.py) || fail "set one version in all of these files"

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
rm -rf "$dist"
"$bin/python" -m hatchling build -d "$dist"
(cd lab && "$bin/python" -m hatchling build -d "$dist")
"$bin/python" deploy/build_collection.py "$dist"

image=()
if [ "${IMAGE:-1}" = 0 ]; then
  image=(--without-image)
else
  # Without a layer cache: cached layers have the timestamp and the packages of another commit.
  IMAGE_CACHE_DIR=$tools/image IMAGE_ARCHIVE=$dist/agent-smith-$version-image.tar.gz deploy/image/build.sh
fi
"$bin/python" deploy/build_bundle.py "$dist" "${image[@]}"

# The SBOM of the image. Then both SBOMs are checked against CycloneDX's schema.
"$bin/python" -m venv "$tools/venv"
if "$tools/venv/bin/python" -m pip --quiet --disable-pip-version-check install cyclonedx-bom; then
  deploy/parts_list.sh "$tools/venv/bin" "$dist/agent-smith-$version.cdx.json"
  "$tools/venv/bin/python" - "$dist"/*.cdx.json <<'PY'
import sys
from pathlib import Path
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

for file in sys.argv[1:]:
    if error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(Path(file).read_text("utf-8")):
        sys.exit(f"{file} is not a valid SBOM: {error}")
PY
else
  echo "NOTE: cyclonedx-bom cannot be installed here: no SBOM of the image" >&2
fi

(cd "$dist" && sha256sum -- * >SHA256SUMS)
cat "$dist/SHA256SUMS"
