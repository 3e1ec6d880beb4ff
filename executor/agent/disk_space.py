"""Checks whether the data folder and the run folder have enough free disk space to start a job.

The data folder (SMITH_DATA_DIR) contains the SQLite database and the artifacts of all runs. The run folder
(SMITH_RUN_DIR) contains the files of the running playbooks.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from executor.log import get_logger

log = get_logger(__name__)

BYTES_PER_MIB = 1024 * 1024
#: Free space that each folder needs before a job is claimed. One run writes a few hundred KiB to each folder, and
#: SQLite's write-ahead log in the data folder grows to a few MiB.
MIN_FREE_MIB = {"data": 200, "run": 16}


def free_bytes(folder: Path) -> int:
    """Return the free space of the folder's file system. If the folder is missing, use its nearest existing parent.

    Raises OSError.
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def describe_shortages(folders: Mapping[str, Path]) -> dict[str, str]:
    """Return a message for each folder with too little free space. Raises OSError.

    The keys of `folders` and of the result are keys of MIN_FREE_MIB.
    """
    messages = {}
    for name, folder in folders.items():
        free_mib = free_bytes(folder) // BYTES_PER_MIB
        if free_mib < MIN_FREE_MIB[name]:
            messages[name] = f"{folder}: {free_mib} MiB are free, but {MIN_FREE_MIB[name]} MiB are required"
    return messages


@dataclass(kw_only=True)
class DiskSpaceChecker:
    """Checks the free space before each claim. Logs when the space becomes too low and when it is sufficient again."""

    folders: Mapping[str, Path]
    _is_space_low: bool = False  #: True if the last measurement found too little space

    def is_space_sufficient(self) -> bool:
        """Return whether there is space for one more job. If the space cannot be measured, repeat the last answer."""
        try:
            shortages = describe_shortages(self.folders)
        except OSError:
            return not self._is_space_low
        if shortages and not self._is_space_low:
            reason = "; ".join(shortages.values())
            log.error("disk_space_low", reason=reason, reaction="no job is claimed until there is enough space")
        elif self._is_space_low and not shortages:
            log.info("disk_space_recovered")
        self._is_space_low = bool(shortages)
        return not shortages
