"""Measures the cores, memory and load of this machine, and computes how many jobs it can run at once.

When the cgroup (v1 or v2) of a container or systemd unit allows less than the machine has, the cgroup's limits apply.
The dictionaries below have the key True for warm runs and False for cold runs. A warm run is forked by a server process
that has already imported Ansible; a cold run is a new ansible-playbook process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

BYTES_PER_MIB = 1024 * 1024
#: Memory of one run. docs/performance.md describes the measurement.
SLOT_MIB = {True: 55, False: 110}
#: Memory of the agent, including the servers of warm runs.
BASE_MIB = {True: 260, False: 160}
#: With more runs per core than this, all runs become slower.
SLOTS_PER_CORE = {True: 20, False: 4}
MIN_CONCURRENCY, MAX_CONCURRENCY = 2, 64
CGROUPS = Path("/sys/fs/cgroup")
LOADAVG = Path("/proc/loadavg")


def default_concurrency(*, is_warm: bool) -> int:
    """Return how many jobs this machine can run at once. `is_warm`: the agent uses warm runs."""
    by_cores = cores() * SLOTS_PER_CORE[is_warm]
    by_memory = (memory_mib() * 0.8 - BASE_MIB[is_warm]) / SLOT_MIB[is_warm]
    return int(max(min(by_cores, by_memory, MAX_CONCURRENCY), MIN_CONCURRENCY))


def cores() -> float:
    """Return how many cores this process may use: the lower of its CPU affinity and the CPU quotas of its cgroups."""
    allowed = float(len(os.sched_getaffinity(0)))
    shares = [quota / period for quota, period in _quotas() if quota > 0 and period > 0]
    return max(min([allowed, *shares]), 0.5)


def memory_mib() -> float:
    """Return how much memory this process may use, in MiB."""
    limits = [limit for limit, _used in _memory_limits()]
    return min([psutil.virtual_memory().total, *limits]) / BYTES_PER_MIB


def available_mib() -> float:
    """Return how much more memory this process can use now, in MiB."""
    unused_bytes = [limit - used for limit, used in _memory_limits()]
    return max(min([psutil.virtual_memory().available, *unused_bytes]) / BYTES_PER_MIB, 0.0)


def runnable() -> int:
    """Return the number of processes that are runnable on the machine now, or 0 when /proc/loadavg is unreadable.

    The load average is not used, because it stays high for a minute after many runs have started. It would delay runs
    for which the machine has enough CPU.
    """
    _averages, _, counts = _read(LOADAVG).rpartition(" ")[0].rpartition(" ")
    return _number(counts.partition("/")[0])


# --- control groups -----------------------------------------------------------------------------------------------


def _quotas() -> Iterator[tuple[int, int]]:
    """Yield the CPU quota and period, in microseconds, of every cgroup of this process. -1 or 0: there is no quota."""
    for group in _groups("cpu"):
        if line := _read(group / "cpu.max"):
            quota, _, period = line.partition(" ")
            yield _number(quota), _number(period)
        else:
            yield _number(_read(group / "cpu.cfs_quota_us")), _number(_read(group / "cpu.cfs_period_us"))


def _memory_limits() -> Iterator[tuple[int, int]]:
    """Yield the memory limit and the used memory, in bytes, of every cgroup of this process that has a limit.

    The used memory does not include file pages that the kernel can reclaim.
    """
    for group in _groups("memory"):
        limit = _number(_read(group / "memory.max") or _read(group / "memory.limit_in_bytes"))
        if 0 < limit < psutil.virtual_memory().total:
            used = _number(_read(group / "memory.current") or _read(group / "memory.usage_in_bytes"))
            yield limit, used - _reclaimable(group)


def _reclaimable(group: Path) -> int:
    """Return the size, in bytes, of the file pages of a cgroup that the kernel can reclaim."""
    for line in _read(group / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return _number(value)
    return 0


def _groups(controller: str) -> Iterator[Path]:
    """Yield this process's cgroup for a controller ("cpu" or "memory"), then all its parent cgroups.

    With cgroup v2, which has an empty list of controllers in /proc/self/cgroup, one cgroup serves all controllers.
    """
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
    """Return the file's text, or '' when it cannot be read."""
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError):
        return ""


def _number(text: str) -> int:
    """Return the integer, or 0 for a text that is not an integer (for example `max`)."""
    return int(text) if text.lstrip("-").isdecimal() else 0
