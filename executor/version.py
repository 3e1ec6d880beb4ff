"""Finds the versions of this package, of other Python packages, and of the community.proxmox collection."""

from __future__ import annotations

import json
import os
import sys
import sysconfig
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


def community_proxmox_version() -> str | None:
    """Return the version of the community.proxmox collection that a playbook run would use; None if none is found."""
    for folder in _ansible_collections_folders():
        try:
            manifest = json.loads((folder / "community/proxmox/MANIFEST.json").read_text("utf-8"))
            return str(manifest["collection_info"]["version"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def collection_search_path() -> list[str]:
    """Return the folders in which playbook runs search for collections, as absolute paths, in the order of the search.

    If ANSIBLE_COLLECTIONS_PATH is set, the order is: the variable's folders, then the folder of this Python's packages.
    Otherwise the order is: the folder of this Python's packages, then Ansible's default folders. So by default the
    collection that was installed and tested together with the agent comes first.
    """
    python_packages = sysconfig.get_path("purelib")
    path_variable = os.environ.get("ANSIBLE_COLLECTIONS_PATH", "")
    if path_variable:
        folders = [*path_variable.split(os.pathsep), python_packages]
    else:
        folders = [python_packages, *DEFAULT_COLLECTIONS_PATH]
    return [str(Path(folder).expanduser().absolute()) for folder in folders if folder]


def _ansible_collections_folders() -> Iterator[Path]:
    """Yield the folders `ansible_collections`, which hold collections, in the order in which runs search them."""
    for parent_folder in [*collection_search_path(), *sys.path]:  # Ansible also searches sys.path
        yield Path(parent_folder) / "ansible_collections"
