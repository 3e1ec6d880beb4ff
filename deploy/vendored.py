"""Add the vendored files (files of other projects in this repository) to an SBOM: vendored.py SBOM.

vendored.json names each vendored file with its version, licence and hash. SBOM is a file in the format CycloneDX.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
LIST_FILE = PROJECT / "deploy" / "vendored.json"


def read_entries() -> list[dict[str, str]]:
    """Return the entries of vendored.json: one for each vendored file."""
    file_entries: list[dict[str, str]] = json.loads(LIST_FILE.read_text(encoding="utf-8"))
    return file_entries


def sbom_components() -> list[dict[str, Any]]:
    """Return each vendored file as a component of an SBOM. Raises ValueError if the hash of a file is wrong."""
    return [_component(entry) for entry in read_entries()]


def _component(entry: dict[str, str]) -> dict[str, Any]:
    digest = hashlib.sha256((PROJECT / entry["file"]).read_bytes()).hexdigest()
    if digest != entry["sha256"]:
        raise ValueError(f"{entry['file']} is not the file of {entry['name']} {entry['version']}: its hash differs")
    return {
        "type": "library",
        "bom-ref": entry["file"],
        "name": entry["name"],
        "version": entry["version"],
        "purl": entry["purl"],
        "hashes": [{"alg": "SHA-256", "content": digest}],
        "licenses": [{"license": {"id": entry["licence"]}}],
    }


def main(file: Path) -> None:
    """Add the vendored files to the SBOM in `file`."""
    sbom = json.loads(file.read_text(encoding="utf-8"))
    sbom["components"] += sbom_components()
    file.write_text(json.dumps(sbom, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
