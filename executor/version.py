"""Finds the versions of this package, of other Python packages, and of the community.proxmox collection."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path

try:
    VERSION = installed_version("agent-smith")
except PackageNotFoundError:  # the code runs from a checkout, and the package is not installed
    VERSION = "0+unknown"
#: The folders in which Ansible searches for a folder `ansible_collections` if ANSIBLE_COLLECTIONS_PATH is not set.
DEFAULT_COLLECTIONS_PATH = ("~/.ansible/collections", "/usr/share/ansible/collections")


def package_version(package: str) -> str | None:
    """Return the version of a Python package; None if it is not installed."""
    try:
        return installed_version(package)
    except PackageNotFoundError:
        return None


def collection_version() -> str | None:
    """Return the version of the community.proxmox collection that Ansible would use; None if there is no collection."""
    for folder in _collection_folders():
        try:
            manifest = json.loads((folder / "community/proxmox/MANIFEST.json").read_text("utf-8"))
            return str(manifest["collection_info"]["version"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _collection_folders() -> Iterator[Path]:
    """Yield the folders `ansible_collections`, which hold collections, in the order in which Ansible searches them."""
    search_path = os.environ.get("ANSIBLE_COLLECTIONS_PATH", "")
    if search_path:
        parent_folders = [folder for folder in search_path.split(os.pathsep) if folder]
    else:
        parent_folders = list(DEFAULT_COLLECTIONS_PATH)
    for parent_folder in [*parent_folders, *sys.path]:
        yield Path(parent_folder).expanduser() / "ansible_collections"
