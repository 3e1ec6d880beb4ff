"""Measures the cores, memory and load of this machine, and computes how many jobs it can run at once.

The limits of a container or systemd unit (cgroup v1 and v2) apply when they are lower than what the machine has.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

BYTES_PER_MIB = 1024 * 1024
#: Memory of one run; the key is "runs are warm". Measured in docs/performance.md.
SLOT_MIB = {True: 55, False: 110}
#: Memory of the agent, including the servers of warm runs; the key is "runs are warm".
BASE_MIB = {True: 260, False: 160}
#: With more runs per core than this, all runs become slower; the key is "runs are warm".
SLOTS_PER_CORE = {True: 20, False: 4}
MIN_CONCURRENCY, MAX_CONCURRENCY = 2, 64
CGROUPS = Path("/sys/fs/cgroup")
LOADAVG = Path("/proc/loadavg")


def default_concurrency(*, is_warm: bool) -> int:
    """Return how many jobs this machine can run at once."""
    by_cores = cores() * SLOTS_PER_CORE[is_warm]
    by_memory = (memory_mib() * 0.8 - BASE_MIB[is_warm]) / SLOT_MIB[is_warm]
    return int(max(min(by_cores, by_memory, MAX_CONCURRENCY), MIN_CONCURRENCY))


def cores() -> float:
    """Return how many cores this process may use: by its CPU affinity, or its cgroup's CPU quota if that is lower."""
    allowed = float(len(os.sched_getaffinity(0)))
    shares = [quota / period for quota, period in _quotas() if quota > 0 and period > 0]
    return max(min([allowed, *shares]), 0.5)


def memory_mib() -> float:
    """Return how much memory this process may use."""
    limits = [limit for limit, _used in _memory_limits()]
    return min([psutil.virtual_memory().total, *limits]) / BYTES_PER_MIB


def available_mib() -> float:
    """Return how much more memory this process can use now."""
    unused_bytes = [limit - used for limit, used in _memory_limits()]
    return max(min([psutil.virtual_memory().available, *unused_bytes]) / BYTES_PER_MIB, 0.0)


def runnable() -> int:
    """Return the number of runnable processes on the machine now, 0 when /proc/loadavg is unreadable.

    The load average would be wrong here: it stays high for a minute after a burst of runs, and would delay more runs.
    """
    _averages, _, counts = _read(LOADAVG).rpartition(" ")[0].rpartition(" ")
    return _number(counts.partition("/")[0])


# --- control groups -----------------------------------------------------------------------------------------------


def _quotas() -> Iterator[tuple[int, int]]:
    """Yield CPU quota and period, in microseconds, of every cgroup of this process."""
    for group in _groups("cpu"):
        if line := _read(group / "cpu.max"):
            quota, _, period = line.partition(" ")
            yield _number(quota), _number(period)
        else:
            yield _number(_read(group / "cpu.cfs_quota_us")), _number(_read(group / "cpu.cfs_period_us"))


def _memory_limits() -> Iterator[tuple[int, int]]:
    """Yield limit and usage in bytes of every cgroup of this process with a limit, without reclaimable file pages."""
    for group in _groups("memory"):
        limit = _number(_read(group / "memory.max") or _read(group / "memory.limit_in_bytes"))
        if 0 < limit < psutil.virtual_memory().total:
            used = _number(_read(group / "memory.current") or _read(group / "memory.usage_in_bytes"))
            yield limit, used - _reclaimable(group)


def _reclaimable(group: Path) -> int:
    for line in _read(group / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return _number(value)
    return 0


def _groups(controller: str) -> Iterator[Path]:
    """Yield this process's cgroup of a controller and its parents, for cgroup v1 and v2."""
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _hierarchy, controllers, path = [*line.split(":", 2), "", ""][:3]
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
