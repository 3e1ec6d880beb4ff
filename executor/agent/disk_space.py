"""How much room the data and the runs have left, and how little is too little to begin another job."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from executor.log import get_logger

log = get_logger(__name__)

BYTES_PER_MIB = 1024 * 1024
#: Free space below which nothing is begun, by folder. A run writes a few hundred KiB, SQLite's WAL a few MiB.
FLOORS_MIB = {"data": 200, "run": 16}


def free_bytes(folder: Path) -> int:
    """Return how much space a folder has left for us, or the one that it will be made in. Raises OSError."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def shortages(folders: Mapping[str, Path]) -> dict[str, str]:
    """Return what is short of space, in words, by the folder's name. Raises OSError."""
    low = {}
    for name, folder in folders.items():
        free_mib = free_bytes(folder) // BYTES_PER_MIB
        if free_mib < FLOORS_MIB[name]:
            low[name] = f"{folder}: {free_mib} MiB are free, less than {FLOORS_MIB[name]}"
    return low


@dataclass(kw_only=True)
class Room:
    """Asked before each claim. A change is logged once: it costs a system call a folder, and no more."""

    folders: Mapping[str, Path]
    _is_short: bool = False

    def is_enough(self) -> bool:
        """True while there is room for one more job; a file system that cannot be asked is no reason to stop."""
        try:
            low = shortages(self.folders)
        except OSError as error:
            low = {"folder": str(error)} if self._is_short else {}
        if low and not self._is_short:
            log.error("space_short", reason="; ".join(low.values()), reaction="nothing is claimed until there is more")
        elif self._is_short and not low:
            log.info("space_enough_again")
        self._is_short = bool(low)
        return not low
