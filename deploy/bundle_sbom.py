"""Describes the offline bundle in an SBOM (CycloneDX 1.6).

The components of the SBOM are the bundle's wheels, collections and image archive, and the vendored files (files of
other projects in this repository). Each component has its checksum.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import zipfile
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

import vendored


def describe_bundle(bundle: Path, version: str) -> dict[str, Any]:
    """Return the SBOM of the bundle in the folder `bundle`. `version` is the version of Agent Smith."""
    components = [describe_wheel(file) for file in sorted(bundle.glob("*/*.whl"))]
    components += [describe_collection(file) for file in sorted(bundle.glob("collections/*"))]
    components += vendored.sbom_components()
    components += [_component("container", "agent-smith-image", version, file) for file in bundle.glob("image/*")]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {"type": "application", "bom-ref": "bundle", "name": bundle.name, "version": version},
        },
        "components": components,
        "dependencies": [{"ref": "bundle", "dependsOn": [component["bom-ref"] for component in components]}],
    }


def describe_wheel(file: Path) -> dict[str, Any]:
    """Return the SBOM component of a wheel, with the licence in the wheel's metadata."""
    with zipfile.ZipFile(file) as wheel:
        (name,) = [name for name in wheel.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
        metadata = HeaderParser().parsestr(wheel.read(name).decode())
    component = _component("library", _normalized_name(metadata["Name"]), metadata["Version"], file)
    component["purl"] = f"pkg:pypi/{component['name']}@{component['version']}"
    component["licenses"] = _licences(metadata)
    return component


def describe_collection(file: Path) -> dict[str, Any]:
    """Return the SBOM component of a collection.

    The archive of our collection is a tar file, and the archive of community.proxmox is a zip file.
    """
    if file.suffix == ".zip":
        with zipfile.ZipFile(file) as zip_archive:
            manifest = next(name for name in zip_archive.namelist() if name.endswith("/MANIFEST.json"))
            info = json.loads(zip_archive.read(manifest))["collection_info"]
    else:
        with tarfile.open(file) as tar_archive:
            info = json.load(tar_archive.extractfile("MANIFEST.json"))["collection_info"]
    component = _component("library", f"{info['namespace']}.{info['name']}", info["version"], file)
    component["purl"] = f"pkg:generic/{component['name']}@{component['version']}"
    licences = [{"id": name} for name in info["license"]] or [{"name": f"see {info['license_file']} in the archive"}]
    component["licenses"] = [{"license": licence} for licence in licences]
    return component


def _component(kind: str, name: str, version: str, file: Path) -> dict[str, Any]:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return {
        "type": kind,
        "bom-ref": f"{file.parent.name}/{file.name}",
        "name": name,
        "version": version,
        "hashes": [{"alg": "SHA-256", "content": digest}],
    }


def _normalized_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _licences(metadata: Message) -> list[dict[str, Any]]:
    """Return the licences in a wheel's metadata: the SPDX expression, else the classifiers, else the field License."""
    if expression := metadata["License-Expression"]:
        return [{"expression": expression}]
    classifiers = metadata.get_all("Classifier", [])
    names = [text.rsplit(" :: ", 1)[1] for text in classifiers if text.startswith("License :: ")]
    names = names or [text.splitlines()[0] for text in [metadata["License"] or ""] if text.strip()]
    return [{"license": {"name": name}} for name in names]
