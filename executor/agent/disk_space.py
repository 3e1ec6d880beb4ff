"""Checks whether the data folder and the run folder have enough free disk space to start a job."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from executor.log import get_logger

log = get_logger(__name__)

BYTES_PER_MIB = 1024 * 1024
#: Free space that each folder needs before a job is claimed. A run writes a few hundred KiB; SQLite's write-ahead log
#: grows to a few MiB.
MIN_FREE_MIB = {"data": 200, "run": 16}


def free_bytes(folder: Path) -> int:
    """Return the free space of the folder's file system. If the folder does not exist, use its nearest existing parent.

    Raises OSError.
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def shortages(folders: Mapping[str, Path]) -> dict[str, str]:
    """Return a message for each folder with too little free space. Raises OSError.

    The keys of `folders` and of the result are those of MIN_FREE_MIB.
    """
    low = {}
    for name, folder in folders.items():
        free_mib = free_bytes(folder) // BYTES_PER_MIB
        if free_mib < MIN_FREE_MIB[name]:
            low[name] = f"{folder}: {free_mib} MiB are free, less than {MIN_FREE_MIB[name]}"
    return low


@dataclass(kw_only=True)
class DiskSpace:
    """Checks the free space before each claim. Logs when it becomes too low and when it is sufficient again."""

    folders: Mapping[str, Path]
    _is_low: bool = False  #: result of the last successful check

    def is_enough(self) -> bool:
        """Return whether there is space for one more job. When it cannot be measured, repeat the previous answer."""
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
