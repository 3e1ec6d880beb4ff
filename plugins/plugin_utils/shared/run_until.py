# SPDX-License-Identifier: Apache-2.0
"""Reads the deadline of an agent's runs: the time at which they must end. The agent writes it to a file.

An agent has a lease of each of its jobs. If the agent does not renew a lease, the lease expires, and another agent may
process the job. A suspended or blocked agent cannot end its runs itself. So whenever an agent renews its leases, it
writes a new deadline of its runs to the file. After the deadline, the guard process of each run ends the run, and the
Ansible action plugins send no further change to Proxmox.

The deadline is a time of CLOCK_BOOTTIME, a clock that all processes of a machine share and that continues while the
machine is suspended. This module imports only the standard library, because the guard of a run must start fast.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Mapping

#: The environment variable with the path of the file. It is not set if an operator executes ansible-playbook by hand.
RUN_UNTIL_VARIABLE = "SMITH_RUN_UNTIL_FILE"
#: The deadline of runs that may continue after the leases have expired, for example because no other agent exists.
NO_LIMIT = math.inf
#: A record is one line: the deadline in seconds, and the checksum of the deadline in hexadecimal digits. The next three
#: constants are the sizes of the deadline, of the checksum and of the record. The file contains the same record twice,
#: so that one of the two can be read at any time while the agent writes the other.
_DEADLINE_BYTES = 20
_CHECKSUM_DIGITS = 8
RECORD_BYTES = _DEADLINE_BYTES + 1 + _CHECKSUM_DIGITS + 1
#: The maximum number of attempts to read a valid record.
_MAX_READ_ATTEMPTS = 2


def boottime_s() -> float:
    """Return the time of the clock CLOCK_BOOTTIME."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def encode(deadline_boottime_s: float) -> bytes:
    """Encode a deadline as a record. The file contains this record twice."""
    deadline = f"{deadline_boottime_s:{_DEADLINE_BYTES}.3f}".encode("ascii")
    return b"%s %0*x\n" % (deadline, _CHECKSUM_DIGITS, zlib.crc32(deadline))


def decode(content: bytes) -> float | None:
    """Decode the deadline in the first valid record of the file's content; None if no record is valid."""
    for start in (0, RECORD_BYTES):
        record = content[start : start + RECORD_BYTES]
        try:
            deadline_boottime_s = float(record[:_DEADLINE_BYTES])
        except ValueError:
            continue
        if record == encode(deadline_boottime_s):
            return deadline_boottime_s
    return None


class RunDeadline:
    """The deadline of the agent's runs. Each method reads the deadline from the file.

    If the file cannot be read, the last deadline that was read applies. If the file was never readable, the deadline
    has passed.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._deadline_boottime_s = -math.inf  #: the last deadline that was read
        self._read_deadline()

    def has_passed(self) -> bool:
        """Read the file. Return True if the deadline has passed."""
        return self.remaining_s() <= 0

    def remaining_s(self) -> float:
        """Read the file. Return the time until the deadline; it is negative if the deadline has passed."""
        self._read_deadline()
        return self._deadline_boottime_s - boottime_s()

    def _read_deadline(self) -> None:
        """Store the deadline that the file contains. If the file cannot be read, keep the last deadline."""
        for _ in range(_MAX_READ_ATTEMPTS):
            deadline_boottime_s = self._deadline_in_file()
            if deadline_boottime_s is not None:
                self._deadline_boottime_s = deadline_boottime_s
                break

    def _deadline_in_file(self) -> float | None:
        try:
            with open(self._path, "rb", buffering=0) as file:
                return decode(file.read(2 * RECORD_BYTES))
        except OSError:
            return None


def run_deadline_from_environment(environment: Mapping[str, str]) -> RunDeadline | None:
    """Return the deadline of a run from the environment of one of its processes; None if the run has no deadline."""
    path = environment.get(RUN_UNTIL_VARIABLE)
    return RunDeadline(path) if path else None
