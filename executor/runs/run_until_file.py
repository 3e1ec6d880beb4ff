"""Writes the time at which the runs of this agent process must end. The guards of the runs read it from a file.

A guard is the process that ends the processes of a run (`execution.py`). It reads the file with `shared/run_until.py`.
The file has a fixed size and is overwritten in place, so that it can also be written when the run folder is full.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from executor.log import get_logger
from executor.shared.run_until import NO_LIMIT, RECORD_BYTES, encode

log = get_logger(__name__)

#: Name of the file in the run folder. A run's ident does not begin with a dot, so no run has a folder with this name.
RUN_UNTIL_FILE = ".run-until"


class RunUntilFile:
    """The file of one agent process. Several threads may use it. Without a call of `limit`, the runs have no limit."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._until_s = NO_LIMIT
        self._is_error_logged = False
        self._lock = threading.Lock()

    def limit(self, until_s: float) -> None:
        """Set the time at which the runs must end, a time of the clock `boottime_s()`.

        If the file cannot be written, this is logged. Then the runs end at the time that was written last, and no run
        starts.
        """
        with self._lock:
            self._until_s = until_s
            try:
                self._write()
            except OSError as error:
                if not self._is_error_logged:
                    log.error("run_limit_not_written", file=str(self.path), reason=str(error))
                self._is_error_logged = True
            else:
                self._is_error_logged = False

    def ensure_written(self) -> None:
        """Write the file if it does not contain the time of the last call of `limit`. Raises OSError.

        A program that cleans temporary folders may have removed the file.
        """
        with self._lock:
            try:
                is_written = self.path.read_bytes() == encode(self._until_s) * 2
            except OSError:
                is_written = False
            if not is_written:
                self._write()

    def _write(self) -> None:
        """Write the same record twice, one after the other, so that one of the two is always complete."""
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            for start in (0, RECORD_BYTES):
                os.pwrite(fd, encode(self._until_s), start)
        finally:
            os.close(fd)
