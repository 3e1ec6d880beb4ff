"""What this machine can carry: how many jobs at once, and whether one more may begin just now.

A container's or unit's own limits count where they are lower than the machine's. A run costs CPU when it starts and
memory as long as it lives; while Proxmox works, it only waits. So memory, and who wants a core just now, decide.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from executor.log import get_logger

log = get_logger(__name__)

BYTES_PER_MIB = 1024 * 1024
#: Memory of one run under way, and of the agent with what stands beside it; see docs/performance.md.
SLOT_MIB = {True: 55, False: 110}  #: by "runs are warm"
BASE_MIB = {True: 260, False: 160}
#: Runs a core can start and follow without making all of them slower.
SLOTS_PER_CORE = {True: 20, False: 4}
FEWEST, MOST = 2, 64
#: Processes that want a core at this moment, for each core, beyond which one more run would only slow the others down:
#: runs that wait for Proxmox want none. So many runs a core go on beside whatever else the machine does.
MOST_RUNNABLE_PER_CORE = 2.0
ALWAYS_PER_CORE = 4.0
#: How long runs are held back before the log says so.
TELL_AFTER_S = 10.0
CGROUPS = Path("/sys/fs/cgroup")
LOADAVG = Path("/proc/loadavg")


def default_concurrency(*, is_warm: bool) -> int:
    """Return how many jobs this machine can carry at once."""
    by_cores = cores() * SLOTS_PER_CORE[is_warm]
    by_memory = (memory_mib() * 0.8 - BASE_MIB[is_warm]) / SLOT_MIB[is_warm]
    return int(max(min(by_cores, by_memory, MOST), FEWEST))


def cores() -> float:
    """Return the cores that we may use: those of our affinity, or the share that our cgroup is given."""
    ours = float(len(os.sched_getaffinity(0)))
    shares = [quota / period for quota, period in _quotas() if quota > 0 and period > 0]
    return max(min([ours, *shares]), 0.5)


def memory_mib() -> float:
    """Return the memory that we may use."""
    limits = [limit for limit, _used in _memory_limits()]
    return min([psutil.virtual_memory().total, *limits]) / BYTES_PER_MIB


def available_mib() -> float:
    """Return the memory that is left for us just now."""
    left = [limit - used for limit, used in _memory_limits()]
    return max(min([psutil.virtual_memory().available, *left]) / BYTES_PER_MIB, 0.0)


def runnable() -> int:
    """Return how many processes of the machine run or want to, at this moment.

    Not the load average: a burst's beginning would hold its middle back a minute later. 0 where nobody tells us.
    """
    _averages, _, counts = _read(LOADAVG).rpartition(" ")[0].rpartition(" ")
    return _number(counts.partition("/")[0])


@dataclass(kw_only=True)
class Admission:
    """Asked before each claim. What holds for longer than a burst's beginning is logged once."""

    is_warm: bool
    _held_at: float | None = None  #: monotonic
    _is_told: bool = False
    _cores: float = field(default_factory=cores)

    @property
    def is_holding(self) -> bool:
        """True since the last answer was no."""
        return self._held_at is not None

    def is_open(self, running: int) -> bool:
        """True while one more run would not make all of them slower. A few may run whatever else the machine does."""
        reason = self._reason(running / self._cores)
        if not reason:
            if self._is_told:
                log.info("admission_resumed", running=running)
            self._held_at, self._is_told = None, False
            return True
        self._held_at = self._held_at or time.monotonic()
        if not self._is_told and time.monotonic() - self._held_at >= TELL_AFTER_S:
            self._is_told = True
            log.warning("admission_held", reason=reason, running=running)
        return False

    def _reason(self, running_per_core: float) -> str:
        if running_per_core >= 1 and (left := available_mib()) < SLOT_MIB[self.is_warm]:
            return f"{left:.0f} MiB of memory are left, a run takes {SLOT_MIB[self.is_warm]}"
        machine = os.cpu_count() or 1  # whose processes are counted, whatever our own share of it is
        if running_per_core >= ALWAYS_PER_CORE and (wanting := runnable()) > MOST_RUNNABLE_PER_CORE * machine:
            return f"{wanting} processes want one of {machine} cores"
        return ""


# --- control groups -----------------------------------------------------------------------------------------------


def _quotas() -> Iterator[tuple[int, int]]:
    """Yield microseconds of CPU and the period that they are for, of every group that we are in."""
    for group in _groups("cpu"):
        if line := _read(group / "cpu.max"):
            quota, _, period = line.partition(" ")
            yield _number(quota), _number(period)
        else:
            yield _number(_read(group / "cpu.cfs_quota_us")), _number(_read(group / "cpu.cfs_period_us"))


def _memory_limits() -> Iterator[tuple[int, int]]:
    """Yield limit and use in bytes of every group that has a limit. Pages of files are given back when needed."""
    for group in _groups("memory"):
        limit = _number(_read(group / "memory.max") or _read(group / "memory.limit_in_bytes"))
        if 0 < limit < psutil.virtual_memory().total:
            used = _number(_read(group / "memory.current") or _read(group / "memory.usage_in_bytes"))
            yield limit, used - _given_back(group)


def _given_back(group: Path) -> int:
    for line in _read(group / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return _number(value)
    return 0


def _groups(controller: str) -> Iterator[Path]:
    """Yield our control group of a controller and those above it, in either version of the hierarchy."""
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _number_of, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUPS / controllers if controllers else CGROUPS
        group = root / path.lstrip("/")
        while True:
            yield group
            if group == root or root not in group.parents:
                break
            group = group.parent


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError):
        return ""


def _number(text: str) -> int:
    return int(text) if text.lstrip("-").isdecimal() else 0
