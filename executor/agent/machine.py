"""Measures the cores, memory and load of this machine, and computes how many jobs the machine can run at once.

When the agent's cgroup (v1 or v2) has lower limits than the machine, the limits of the cgroup apply. For example, the
cgroup of a container or of a systemd unit may have such limits.

A run is warm or cold. A warm run is forked by a server process that has already imported Ansible. A cold run is a new
ansible-playbook process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

BYTES_PER_MIB = 1024 * 1024
#: The two values of the parameter `uses_warm_runs`, and the keys of the next three dictionaries.
WARM, COLD = True, False
#: Memory of one run. docs/performance.md describes the measurement.
RUN_MEMORY_MIB = {WARM: 40, COLD: 110}
#: Memory of the agent, including the server process of warm runs.
AGENT_MEMORY_MIB = {WARM: 190, COLD: 160}
#: Maximum number of runs per core. With more runs, all runs become slower.
MAX_RUNS_PER_CORE = {WARM: 32, COLD: 4}
#: The lowest and the highest result of `default_concurrency`.
MIN_CONCURRENCY, MAX_CONCURRENCY = 2, 128
#: The share of the result of `usable_memory_mib` that the agent and its runs may use. The rest is for the operating
#: system and for peaks.
MAX_MEMORY_SHARE = 0.8
#: The lowest result of `usable_cores`, even when a cgroup allows less.
MIN_CORES = 0.5
CGROUP_ROOT = Path("/sys/fs/cgroup")
LOADAVG_FILE = Path("/proc/loadavg")


def default_concurrency(*, uses_warm_runs: bool) -> int:
    """Return how many jobs this machine can run at once."""
    max_runs_for_cores = usable_cores() * MAX_RUNS_PER_CORE[uses_warm_runs]
    memory_for_runs_mib = usable_memory_mib() * MAX_MEMORY_SHARE - AGENT_MEMORY_MIB[uses_warm_runs]
    max_runs_for_memory = memory_for_runs_mib / RUN_MEMORY_MIB[uses_warm_runs]
    return int(max(min(max_runs_for_cores, max_runs_for_memory, MAX_CONCURRENCY), MIN_CONCURRENCY))


def usable_cores() -> float:
    """Return how many cores this process may use: the lowest of its CPU affinity and the CPU quotas of its cgroups."""
    cores_in_affinity = float(len(os.sched_getaffinity(0)))
    cores_in_quotas = [quota / period for quota, period in _cpu_quotas() if quota > 0 and period > 0]
    return max(min([cores_in_affinity, *cores_in_quotas]), MIN_CORES)


def usable_memory_mib() -> float:
    """Return how much memory this process may use, in MiB."""
    limits_bytes = [limit_bytes for limit_bytes, _used_bytes in _memory_limits()]
    return min([psutil.virtual_memory().total, *limits_bytes]) / BYTES_PER_MIB


def available_memory_mib() -> float:
    """Return how much more memory this process can use now, in MiB."""
    unused_bytes = [limit_bytes - used_bytes for limit_bytes, used_bytes in _memory_limits()]
    return max(min([psutil.virtual_memory().available, *unused_bytes]) / BYTES_PER_MIB, 0.0)


def runnable_process_count() -> int:
    """Return the number of processes that are runnable on the machine now, or 0 when /proc/loadavg is unreadable.

    While this number is high, the agent starts no further run (admission.py). The load average is not suitable for this
    decision: it stays high for a minute after many runs have started, although the machine has enough CPU again.
    """
    # The file's content is, for example, "0.31 0.20 0.15 2/1034 48213". In the fourth field, the number of runnable
    # processes stands before the slash.
    fields = _read_text(LOADAVG_FILE).split(" ")
    return _parse_number(fields[3].partition("/")[0]) if len(fields) > 3 else 0


# --- control groups -----------------------------------------------------------------------------------------------


def _cpu_quotas() -> Iterator[tuple[int, int]]:
    """Yield the CPU quota and period, in microseconds, of this process's cgroup and its parent cgroups.

    A quota of 0 or less means that the cgroup has no quota.
    """
    for group in _cgroups("cpu"):
        if line := _read_text(group / "cpu.max"):
            quota, _, period = line.partition(" ")
            yield _parse_number(quota), _parse_number(period)
        else:
            yield (
                _parse_number(_read_text(group / "cpu.cfs_quota_us")),
                _parse_number(_read_text(group / "cpu.cfs_period_us")),
            )


def _memory_limits() -> Iterator[tuple[int, int]]:
    """Yield the memory limit and the used memory, in bytes, of this process's cgroup and its parent cgroups.

    A cgroup is skipped if it has no limit below the machine's memory. The used memory excludes file
    pages that the kernel can reclaim.
    """
    for group in _cgroups("memory"):
        limit_bytes = _parse_number(_read_text(group / "memory.max") or _read_text(group / "memory.limit_in_bytes"))
        if 0 < limit_bytes < psutil.virtual_memory().total:
            used_bytes = _parse_number(
                _read_text(group / "memory.current") or _read_text(group / "memory.usage_in_bytes")
            )
            yield limit_bytes, used_bytes - _reclaimable_bytes(group)


def _reclaimable_bytes(group: Path) -> int:
    """Return the total size of the cgroup's file pages that the kernel can reclaim."""
    for line in _read_text(group / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return _parse_number(value)
    return 0


def _cgroups(controller: str) -> Iterator[Path]:
    """Yield this process's cgroup for a controller ("cpu" or "memory"), then all its parent cgroups.

    A line of /proc/self/cgroup has the format `hierarchy:controllers:path`. With cgroup v2 the list of controllers is
    empty, because one cgroup serves all controllers.
    """
    for line in _read_text(Path("/proc/self/cgroup")).splitlines():
        _hierarchy, controllers, path = [*line.split(":", 2), "", ""][:3]  # an incomplete line gets empty fields
        if controllers and controller not in controllers.split(","):
            continue
        # cgroup v1 has one tree of folders per controller.
        root = CGROUP_ROOT / controllers if controllers else CGROUP_ROOT
        group = root / path.lstrip("/")
        while True:
            yield group
            if group == root or root not in group.parents:
                break
            group = group.parent


def _read_text(file: Path) -> str:
    """Return the file's text, or '' when it cannot be read."""
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError):
        return ""


def _parse_number(text: str) -> int:
    """Return the integer, or 0 for a text that is not an integer (for example `max`)."""
    return int(text) if text.lstrip("-").isdecimal() else 0
