"""Measures the CPU time and memory of a process tree from /proc, runs workloads in processes, and computes medians."""

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

#: The unit of CPU times in /proc.
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
ROOT = Path(__file__).resolve().parents[1]
#: Interval between two samples of memory. A sample stops each process for milliseconds: with a sample every 0.25 s, a
#: burst took 10 % longer.
SAMPLE_S = 2.0


class WorkloadFailed(RuntimeError):
    """A job of a workload failed, so the figures of the workload cannot be compared with others."""


def in_own_process(
    module: str, inputs: Mapping[str, object], folder: Path, environment: Mapping[str, str]
) -> dict[str, Any]:
    """Run `python -m MODULE INPUT OUTPUT` in a new process and return the content of OUTPUT.

    INPUT is a JSON file with `inputs`, and OUTPUT a JSON file that the module writes. The new process does no other
    work, so its cost is that of the workload. It inherits the environment of this process, but the variables
    PROXMOX_*, FULCRUM_* and SMITH_* are those in `environment`. Raises WorkloadFailed if the module fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    input_file, output_file = folder / f"{uuid.uuid4()}.input.json", folder / f"{uuid.uuid4()}.json"
    input_file.write_text(json.dumps(inputs), encoding="utf-8")
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("PROXMOX_", "FULCRUM_", "SMITH_"))
    }
    done = subprocess.run(
        [sys.executable, "-m", module, str(input_file), str(output_file)],
        env={**inherited, **environment, "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise WorkloadFailed(f"{module} {dict(inputs)}: {done.stderr[-3000:]}")
    return dict(json.loads(output_file.read_text(encoding="utf-8")))


def tree_cpu_s(root: int) -> float:
    """Return the user and system time of a process, of its descendants, and of the ended children of all of them."""
    return sum(_cpu_ticks(pid) for pid in {root, *process_tree.descendants(root)}) / TICKS_PER_S


def _cpu_ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:  # the process has ended
        return 0
    return sum(int(field) for field in fields[11:15])  # the fields utime, stime, cutime and cstime


def tree_pss_mib(root: int, *, include_root: bool = False) -> float:
    """Return the memory of a process's descendants, with `include_root` also that of the process itself.

    The memory is the proportional set size (PSS), in which a page that n processes share counts as 1/n in each.
    """
    pids = process_tree.descendants(root) | ({root} if include_root else set())
    return sum(_pss_kib(pid) for pid in pids) / 1024


def _pss_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


@dataclass
class Peak:
    """The largest of the memory samples taken so far."""

    mib: float = 0.0


@contextmanager
def sample_peak_memory(root: int, *, include_root: bool = False) -> Iterator[Peak]:
    """Sample the memory of a process tree until the block ends. The parameters are those of `tree_pss_mib`."""
    peak, stop = Peak(), threading.Event()

    def sample() -> None:
        while not stop.wait(SAMPLE_S):
            peak.mib = max(peak.mib, tree_pss_mib(root, include_root=include_root))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that follows this share of the values in ascending order; the largest if no value follows."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def median(values: Sequence[float]) -> float:
    """Return the median of the values."""
    return statistics.median(values)


def machine_facts() -> dict[str, object]:
    """Return facts about this machine and its software on which the figures depend.

    A high load in `load_before` means that other processes were running when the bench started.
    """
    memory_kib = int(Path("/proc/meminfo").read_text(encoding="ascii").split()[1])
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
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
