#!/bin/sh
# Writes the SBOM of the image (CycloneDX, with hashes): parts_list.sh BIN FILE. BIN contains cyclonedx-bom.
set -eu
"$1/cyclonedx-py" requirements --output-reproducible --output-format JSON --output-file "$2" deploy/image/requirements.txt
"$1/python" - "$2" deploy/image/requirements.txt <<'PY'
import json, re, sys

parts = json.load(open(sys.argv[1], encoding="utf-8"))["components"]
pinned = set(re.findall(r"^([A-Za-z0-9._-]+)==", open(sys.argv[2], encoding="utf-8").read(), re.MULTILINE))
hashed = {part["name"] for part in parts for link in part.get("externalReferences", ()) if link.get("hashes")}
without_hash = [part["name"] for part in parts if not part.get("version") or part["name"] not in hashed]
assert {part["name"].lower() for part in parts} == {name.lower() for name in pinned}, "the SBOM lacks a pinned distribution"
assert not without_hash, f"without version or hashes: {without_hash}"
print(f"{len(parts)} distributions")
PY
"$1/python" deploy/vendored.py "$2"
