# SPDX-License-Identifier: Apache-2.0
"""Reads, from a file that an agent writes, until when the runs of this agent may continue.

The leases of an agent expire if the agent does not renew them, and then another agent may process its jobs. A suspended
or blocked agent cannot end its runs itself. So with each renewal of its leases, an agent writes to a file the moment at
which its runs must end. After this moment the guard process of each run ends the run, and an action changes nothing
more at Proxmox.

The moment is a time of CLOCK_BOOTTIME, which is the same for all processes of a machine and continues while the machine
is suspended. This module imports the standard library only, because the guard of a run must start fast.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Mapping

#: Environment variable with the path of the file. An operator who executes a playbook by hand does not set it.
RUN_UNTIL_VARIABLE = "SMITH_RUN_UNTIL_FILE"
#: The moment of runs that may continue without limit.
NO_LIMIT = math.inf
#: The file contains the same record twice, so one of them can be read at every moment while the agent writes. A record
#: is the moment in seconds, and a checksum of it in hexadecimal digits.
_MOMENT_BYTES = 20
_CHECKSUM_DIGITS = 8
RECORD_BYTES = _MOMENT_BYTES + 1 + _CHECKSUM_DIGITS + 1
#: How often the file is read in one check if it has no valid record.
_READ_ATTEMPTS = 2


def boottime_s() -> float:
    """Return the time of the clock CLOCK_BOOTTIME."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def encode(end_boottime_s: float) -> bytes:
    """Return the record of a moment. The file contains it twice."""
    moment = f"{end_boottime_s:{_MOMENT_BYTES}.3f}".encode("ascii")
    return b"%s %0*x\n" % (moment, _CHECKSUM_DIGITS, zlib.crc32(moment))


def decode(content: bytes) -> float | None:
    """Return the moment of the first valid record in the content of the file; None if no record is valid."""
    for start in (0, RECORD_BYTES):
        record = content[start : start + RECORD_BYTES]
        try:
            end_boottime_s = float(record[:_MOMENT_BYTES])
        except ValueError:
            continue
        if record == encode(end_boottime_s):
            return end_boottime_s
    return None


class RunUntil:
    """Decides whether the runs of the agent must have ended.

    If the file cannot be read now, the moment that was read last still applies. If the file was never readable, the
    runs must end.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._end_boottime_s = -math.inf  #: the moment that was read last
        self.is_over()

    def is_over(self) -> bool:
        """Read the file. Return True if its moment has passed."""
        return self.left_s() <= 0

    def left_s(self) -> float:
        """Read the file. Return the time until its moment, in seconds; it is negative if the moment has passed."""
        for _ in range(_READ_ATTEMPTS):
            end_boottime_s = self._read()
            if end_boottime_s is not None:
                self._end_boottime_s = end_boottime_s
                break
        return self._end_boottime_s - boottime_s()

    def _read(self) -> float | None:
        try:
            with open(self._path, "rb", buffering=0) as file:
                return decode(file.read(2 * RECORD_BYTES))
        except OSError:
            return None


def run_until_from_environment(environment: Mapping[str, str]) -> RunUntil | None:
    """Return the moment that limits a run with this environment; None if nothing limits the run."""
    path = environment.get(RUN_UNTIL_VARIABLE)
    return RunUntil(path) if path else None
