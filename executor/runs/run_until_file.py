"""Writes to a file the deadline at which all runs of this agent process must end.

When the agent's leases have expired, another agent may process the jobs. So the runs must end before the leases expire.
With each renewal of its leases, the agent writes a new deadline. It writes NO_LIMIT if the runs may continue after the
leases have expired, for example because there is no other agent.

The guard is the process that ends a run's processes at the deadline (`execution.py`). It reads the file with
`shared/run_until.py`. The file is in the run folder, which contains the private folders of all runs. The file has a
fixed size and is overwritten in place, so the agent can write it even when the run folder is full.
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
    """The file with the deadline of one agent process's runs. Several threads may use this object.

    Before the first call of `set_deadline`, the runs have no deadline.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._deadline_s = NO_LIMIT
        self._is_error_logged = False
        self._lock = threading.Lock()

    def set_deadline(self, deadline_s: float) -> None:
        """Write the time at which the runs must end, a time of the clock `run_until.boottime_s()`.

        If the file cannot be written, this method logs the error. Then the current runs end at the deadline that was
        written last. A new run starts only after `ensure_written`, which `Runner.run` calls, has written the file.
        """
        with self._lock:
            self._deadline_s = deadline_s
            try:
                self._write()
            except OSError as error:
                if not self._is_error_logged:
                    log.error("run_limit_not_written", file=str(self.path), reason=str(error))
                self._is_error_logged = True
            else:
                self._is_error_logged = False

    def ensure_written(self) -> None:
        """Write the file if it does not contain the deadline of the last `set_deadline`. Raises OSError if this fails.

        A program that cleans temporary folders may have removed the file. The file contains the deadline twice.
        """
        with self._lock:
            try:
                is_written = self.path.read_bytes() == encode(self._deadline_s) * 2
            except OSError:
                is_written = False
            if not is_written:
                self._write()

    def _write(self) -> None:
        """Write two copies of the encoded deadline, each of RECORD_BYTES bytes.

        While one copy is being written, the other copy is complete.
        """
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            for start in (0, RECORD_BYTES):
                os.pwrite(fd, encode(self._deadline_s), start)
        finally:
            os.close(fd)
