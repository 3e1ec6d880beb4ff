"""Finds the versions of this package, of other Python packages, and of the community.proxmox collection."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path

try:
    VERSION = installed("agent-smith")
except PackageNotFoundError:  # the code runs from a checkout, and the package is not installed
    VERSION = "0+unknown"
#: The folders in which Ansible searches for collections if ANSIBLE_COLLECTIONS_PATH is not set.
COLLECTION_FOLDERS = ("~/.ansible/collections", "/usr/share/ansible/collections")


def package_version(package: str) -> str | None:
    """Return the version of a Python package; None if it is not installed."""
    try:
        return installed(package)
    except PackageNotFoundError:
        return None


def collection_version() -> str | None:
    """Return the version of the community.proxmox collection that Ansible would use; None if it finds none."""
    for folder in _collection_folders():
        try:
            manifest = json.loads((folder / "community/proxmox/MANIFEST.json").read_text("utf-8"))
            return str(manifest["collection_info"]["version"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _collection_folders() -> Iterator[Path]:
    """Yield the folders that may contain collections, in the order in which Ansible searches them."""
    named = os.environ.get("ANSIBLE_COLLECTIONS_PATH", "")
    roots = [*(part for part in named.split(os.pathsep) if part), *(COLLECTION_FOLDERS if not named else ()), *sys.path]
    for root in roots:
        yield Path(root).expanduser() / "ansible_collections"
