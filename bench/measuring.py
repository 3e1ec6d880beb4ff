"""Measures the CPU time and memory of a process tree, runs a workload in its own process, and computes percentiles."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from executor.processes import process_tree

#: In /proc, CPU times are counted in ticks. This is the number of ticks per second.
CPU_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
#: The root folder of the project.
ROOT = Path(__file__).resolve().parents[1]
#: How much of the end of a failed module's error output is shown.
MAX_ERROR_CHARACTERS = 3000
#: Interval between two samples of memory. A sample stops each process for milliseconds. With an interval of 0.25 s, a
#: burst took 10 % longer.
MEMORY_SAMPLE_INTERVAL_S = 2.0


class WorkloadFailed(RuntimeError):
    """A job, a playbook run or the process of a workload failed, so the workload has no figures to compare."""


def run_in_own_process(
    module: str, inputs: Mapping[str, object], folder: Path, environment: Mapping[str, str]
) -> dict[str, Any]:
    """Run `python -m MODULE INPUT OUTPUT` in a new process and return the content of OUTPUT.

    INPUT is a JSON file with `inputs`. OUTPUT is a JSON file that the module writes. The new process does no other
    work, so its cost is the cost of the workload. It inherits the environment variables of this process, except
    PROXMOX_*, FULCRUM_* and SMITH_*: of these, it gets only the variables in `environment`. Raises WorkloadFailed if
    the module fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    input_file = folder / f"{uuid.uuid4()}.input.json"
    output_file = folder / f"{uuid.uuid4()}.json"
    input_file.write_text(json.dumps(inputs), encoding="utf-8")
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("PROXMOX_", "FULCRUM_", "SMITH_"))
    }
    scripts_folder = sysconfig.get_path("scripts")  # contains Ansible's programs
    path = f"{scripts_folder}{os.pathsep}{os.environ['PATH']}"
    finished_process = subprocess.run(
        [sys.executable, "-m", module, str(input_file), str(output_file)],
        env={**inherited, **environment, "PATH": path},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if finished_process.returncode:
        error_output = finished_process.stderr[-MAX_ERROR_CHARACTERS:]
        raise WorkloadFailed(f"{module} {dict(inputs)}: {error_output}")
    return dict(json.loads(output_file.read_text(encoding="utf-8")))


def tree_cpu_s(root_pid: int) -> float:
    """Return the CPU time of the processes in a tree, and of their children that have ended.

    The CPU time is the sum of the user time and the system time.
    """
    pids = {root_pid, *process_tree.descendants(root_pid)}
    return sum(_cpu_ticks(pid) for pid in pids) / CPU_TICKS_PER_S


def _cpu_ticks(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # the process has ended
        return 0
    fields_after_name = stat.rpartition(")")[2].split()  # the name of the process is in parentheses
    return sum(int(field) for field in fields_after_name[11:15])  # the fields utime, stime, cutime and cstime


def tree_pss_mib(root_pid: int, *, include_root: bool = False) -> float:
    """Return the memory of the descendants of a process. With `include_root`, add the memory of the process itself.

    The memory is the proportional set size (PSS): a page that n processes share counts as 1/n in each of them.
    """
    pids = process_tree.descendants(root_pid) | ({root_pid} if include_root else set())
    return sum(_pss_kib(pid) for pid in pids) / 1024


def _pss_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:  # the process has ended
        return 0
    for line in lines:
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


@dataclass
class MemoryPeak:
    """The largest of the memory samples taken so far."""

    mib: float = 0.0


@contextmanager
def sample_peak_memory(root_pid: int, *, include_root: bool = False) -> Iterator[MemoryPeak]:
    """Sample the memory of a process tree until the block ends. The parameters are those of `tree_pss_mib`."""
    peak = MemoryPeak()
    stop = threading.Event()

    def sample_until_stopped() -> None:
        while not stop.wait(MEMORY_SAMPLE_INTERVAL_S):
            peak.mib = max(peak.mib, tree_pss_mib(root_pid, include_root=include_root))

    thread = threading.Thread(target=sample_until_stopped, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def percentile(values: Sequence[float], share: float) -> float:
    """Sort the values and return the one at the index `share * len(values)`; if `share` is 1, the largest value."""
    ascending = sorted(values)
    index = min(int(len(ascending) * share), len(ascending) - 1)
    return ascending[index]


def median(values: Sequence[float]) -> float:
    """Return the median of the values."""
    return statistics.median(values)


def machine_facts() -> dict[str, object]:
    """Return the facts about this machine and its software that influence the figures.

    A high `load_before` means that other processes were running when the bench started.
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
