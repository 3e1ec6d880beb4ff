"""Files of other projects that this repository contains: vendored.json names each with version, licence and hash.

`vendored.py SBOM` adds them to a CycloneDX document.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
LIST = PROJECT / "deploy" / "vendored.json"


def entries() -> list[dict[str, str]]:
    """Return the vendored files as vendored.json describes them."""
    found: list[dict[str, str]] = json.loads(LIST.read_text(encoding="utf-8"))
    return found


def components() -> list[dict[str, Any]]:
    """Return each vendored file as a component of an SBOM. Raises ValueError if a file has been changed."""
    return [_component(entry) for entry in entries()]


def _component(entry: dict[str, str]) -> dict[str, Any]:
    digest = hashlib.sha256((PROJECT / entry["file"]).read_bytes()).hexdigest()
    if digest != entry["sha256"]:
        raise ValueError(f"{entry['file']} is not the file of {entry['name']} {entry['version']}")
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
    """Add the vendored files to the SBOM in this file."""
    document = json.loads(file.read_text(encoding="utf-8"))
    document["components"] += components()
    file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
