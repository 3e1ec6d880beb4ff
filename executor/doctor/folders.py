"""Finds a folder's nearest existing parent and mount point, and whether the folder's file system is read-only."""

from __future__ import annotations

import os
from pathlib import Path


def nearest_existing_folder(path: Path) -> Path:
    """Return the path itself if it is a folder, or else its nearest parent that exists."""
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def mount_point(folder: Path) -> Path:
    """Return the folder at which the file system of this folder is mounted."""
    folder = folder.resolve()
    while not folder.is_mount() and folder != folder.parent:
        folder = folder.parent
    return folder


def read_only_reason(folder: Path) -> str | None:
    """Return a text if the file system of the folder is read-only; None if the file system is writable."""
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        return f"the file system of {folder} is read-only"
    return None
