"""Checks whether the data folder and the run folder have enough free disk space to start a job."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from executor.log import get_logger

log = get_logger(__name__)

BYTES_PER_MIB = 1024 * 1024
#: Free space that a folder needs before a job starts. A run writes a few hundred KiB, and SQLite's WAL a few MiB.
MIN_FREE_MIB = {"data": 200, "run": 16}


def free_bytes(folder: Path) -> int:
    """Return the free space at a folder; if it does not exist, at its nearest existing parent. Raises OSError."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def shortages(folders: Mapping[str, Path]) -> dict[str, str]:
    """Return a message for each folder with too little free space; keys as in `folders`. Raises OSError."""
    low = {}
    for name, folder in folders.items():
        free_mib = free_bytes(folder) // BYTES_PER_MIB
        if free_mib < MIN_FREE_MIB[name]:
            low[name] = f"{folder}: {free_mib} MiB are free, less than {MIN_FREE_MIB[name]}"
    return low


@dataclass(kw_only=True)
class DiskSpace:
    """Checks free space before each claim, with one system call per folder, and logs each change once."""

    folders: Mapping[str, Path]
    _is_low: bool = False  #: result of the last check that could be made

    def is_enough(self) -> bool:
        """True when there is space for one more job. When it cannot be measured, return the previous answer."""
        try:
            low = shortages(self.folders)
        except OSError as error:
            low = {"folder": str(error)} if self._is_low else {}
        if low and not self._is_low:
            reason = "; ".join(low.values())
            log.error("disk_space_low", reason=reason, reaction="nothing is claimed until there is more")
        elif self._is_low and not low:
            log.info("disk_space_recovered")
        self._is_low = bool(low)
        return not low
