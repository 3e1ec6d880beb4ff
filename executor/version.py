"""Returns the versions of this package, of other Python packages, and of the community.proxmox collection."""

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
except PackageNotFoundError:  # run from a folder that was never installed
    VERSION = "0+unknown"
#: Where Ansible searches for collections if ANSIBLE_COLLECTIONS_PATH is not set.
COLLECTION_FOLDERS = ("~/.ansible/collections", "/usr/share/ansible/collections")


def package_version(package: str) -> str | None:
    """Return a Python package's version, None when it is not installed."""
    try:
        return installed(package)
    except PackageNotFoundError:
        return None


def collection_version() -> str | None:
    """Return the version of community.proxmox that Ansible would use; None if there is none."""
    for folder in _collection_folders():
        try:
            manifest = json.loads((folder / "community/proxmox/MANIFEST.json").read_text("utf-8"))
            return str(manifest["collection_info"]["version"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _collection_folders() -> Iterator[Path]:
    """Yield the folders `ansible_collections` in the order in which Ansible searches them."""
    named = os.environ.get("ANSIBLE_COLLECTIONS_PATH", "")
    roots = [*(part for part in named.split(os.pathsep) if part), *(COLLECTION_FOLDERS if not named else ()), *sys.path]
    for root in roots:
        yield Path(root).expanduser() / "ansible_collections"
