"""Measures the CPU time of the bench and of other processes, and memory; computes medians and percentiles."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from executor.processes.memory import process_tree_memory_mib

#: The number of ticks per second. In /proc, CPU times are counted in ticks.
CPU_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
#: The root folder of the project.
ROOT = Path(__file__).resolve().parents[1]
#: The interval between two samples of memory. The kernel blocks a process for milliseconds while it counts the memory
#: of the process, so the bench measures no durations while it samples memory.
MEMORY_SAMPLE_INTERVAL_S = 0.5


class MeasurementFailed(RuntimeError):
    """A job, a playbook run or a process of the measured work failed, so there are no figures to compare."""


# --- CPU time ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ProcessStat:
    """Values of one process, from /proc/<pid>/stat."""

    parent_pid: int
    own_cpu_s: float  #: user time and system time
    children_cpu_s: float  #: user time and system time of the ended children for which the process has waited


def tree_cpu_s(root_pid: int) -> float:
    """Return the CPU time of the processes in a tree, and of their children that have ended.

    The CPU time is the sum of the user time and the system time. A zombie counts as a process of the tree. When its
    parent has waited for it, its CPU time is in the `children_cpu_s` of the parent.
    """
    stats = _process_stats()
    return sum(stats[pid].own_cpu_s + stats[pid].children_cpu_s for pid in _tree_pids(root_pid, stats))


def own_cpu_s(pid: int) -> float:
    """Return the CPU time of one process, without its children."""
    return _process_stats()[pid].own_cpu_s


def _process_stats() -> dict[int, _ProcessStat]:
    stats = {}
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            text = Path(f"/proc/{name}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:  # the process has ended
            continue
        fields = text.rpartition(")")[2].split()  # the name of the process is in parentheses
        utime, stime, cutime, cstime = (int(field) / CPU_TICKS_PER_S for field in fields[11:15])
        stats[int(name)] = _ProcessStat(int(fields[1]), utime + stime, cutime + cstime)
    return stats


def _tree_pids(root_pid: int, stats: dict[int, _ProcessStat]) -> set[int]:
    """Return the process ids of a tree, with its root."""
    tree = {root_pid} & stats.keys()
    while added := {pid for pid, stat in stats.items() if stat.parent_pid in tree} - tree:
        tree |= added
    return tree


@dataclass
class CpuUse:
    """The use of the CPU by all processes of the bench, and by other processes."""

    bench_cpu_s: float = 0.0
    others_share: float = 0.0  #: share of the machine's CPU time that other processes used


@contextmanager
def measure_cpu_use() -> Iterator[CpuUse]:
    """Yield a CpuUse, whose values are set when the `with` block ends.

    The time that a hypervisor gave to other virtual machines (steal) counts as time of other processes.
    """
    cpu_use = CpuUse()
    busy_before_s, total_before_s = _machine_cpu_s()
    bench_before_s = tree_cpu_s(os.getpid())
    yield cpu_use
    busy_s, total_s = _machine_cpu_s()
    cpu_use.bench_cpu_s = tree_cpu_s(os.getpid()) - bench_before_s
    others_s = busy_s - busy_before_s - cpu_use.bench_cpu_s
    cpu_use.others_share = max(others_s / max(total_s - total_before_s, 1 / CPU_TICKS_PER_S), 0.0)


def _machine_cpu_s() -> tuple[float, float]:
    """Return the busy time and the total time of all cores since the machine's start, from /proc/stat."""
    first_line = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
    user, nice, system, idle, iowait, irq, softirq, steal = (int(field) for field in first_line.split()[1:9])
    busy_ticks = user + nice + system + irq + softirq + steal
    return busy_ticks / CPU_TICKS_PER_S, (busy_ticks + idle + iowait) / CPU_TICKS_PER_S


# --- memory -----------------------------------------------------------------------------------------------------------


@dataclass
class MemoryPeak:
    """The largest memory sample so far."""

    mib: float = 0.0


@contextmanager
def sample_peak_memory(root_pid: int) -> Iterator[MemoryPeak]:
    """Sample the memory of a process's descendants until the `with` block ends. Yield the peak, which is updated."""
    peak = MemoryPeak()
    stop_requested = threading.Event()

    def sample_until_stopped() -> None:
        while not stop_requested.wait(MEMORY_SAMPLE_INTERVAL_S):
            peak.mib = max(peak.mib, process_tree_memory_mib(root_pid, include_root_process=False))

    thread = threading.Thread(target=sample_until_stopped, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop_requested.set()
        thread.join()


# --- statistics and facts ---------------------------------------------------------------------------------------------


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value at the index `share * len(values)` of the sorted values; if `share` is 1, the largest value."""
    ascending = sorted(values)
    index = min(int(len(ascending) * share), len(ascending) - 1)
    return ascending[index]


def median(values: Sequence[float]) -> float:
    """Return the median of the values."""
    return statistics.median(values)


def machine_facts() -> dict[str, object]:
    """Return the facts about this machine and its software that influence the figures.

    A high `load_before` means that other processes were running when the bench started. `fakepve` is the package that
    the Proxmox stand-in uses.
    """
    memory_kib = int(Path("/proc/meminfo").read_text(encoding="ascii").split()[1])  # the first line is MemTotal
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": memory_kib // 1024,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("ansible-core", "ansible-runner", "proxmoxer", "fakepve")},
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "commit": _commit(),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    try:
        command = ["git", "describe", "--always", "--dirty"]
        finished_process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return finished_process.stdout.strip()
