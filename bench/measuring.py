"""What a tree of processes costs, read from the kernel's own accounts, and what this machine is."""

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

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
ROOT = Path(__file__).resolve().parents[1]
#: How often memory is looked at. A look costs milliseconds a process, and stops it for as long: every quarter of a
#: second, a burst was slower by a tenth.
SAMPLE_S = 2.0


class WorkloadBroke(RuntimeError):
    """A job of a workload failed: there is nothing to compare."""


def in_own_process(module: str, order: Mapping[str, object], folder: Path, own: Mapping[str, str]) -> dict[str, Any]:
    """Let `python -m MODULE ORDER OUT` carry out an order, both JSON files, so that all it costs is its own.

    `own` are variables besides ours, of which PROXMOX_*, FULCRUM_* and SMITH_* are left out. Raises WorkloadBroke.
    """
    folder.mkdir(parents=True, exist_ok=True)
    order_file, out_file = folder / f"{uuid.uuid4()}.order", folder / f"{uuid.uuid4()}.json"
    order_file.write_text(json.dumps(order), encoding="utf-8")
    ours = {
        name: value for name, value in os.environ.items() if not name.startswith(("PROXMOX_", "FULCRUM_", "SMITH_"))
    }
    done = subprocess.run(
        [sys.executable, "-m", module, str(order_file), str(out_file)],
        env={**ours, **own, "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise WorkloadBroke(f"{module} {dict(order)}: {done.stderr[-3000:]}")
    return dict(json.loads(out_file.read_text(encoding="utf-8")))


def tree_cpu_s(root: int) -> float:
    """Return user and system time of a process, of all below it, and of all that these have waited for."""
    return sum(_cpu_ticks(pid) for pid in {root, *process_tree.descendants(root)}) / TICKS_PER_S


def _cpu_ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:  # it has ended between two looks
        return 0
    return sum(int(field) for field in fields[11:15])  # utime stime cutime cstime


def tree_pss_mib(root: int, *, itself: bool = False) -> float:
    """Return the memory of all below a process; pages that several share count once, divided between them."""
    pids = process_tree.descendants(root) | ({root} if itself else set())
    return sum(_pss_kib(pid) for pid in pids) / 1024


def _pss_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


@dataclass
class Peak:
    """The most memory that was seen."""

    mib: float = 0.0


@contextmanager
def watching_memory(root: int, *, itself: bool = False) -> Iterator[Peak]:
    """Look at a tree's memory for the length of the block."""
    peak, over = Peak(), threading.Event()

    def watch() -> None:
        while not over.wait(SAMPLE_S):
            peak.mib = max(peak.mib, tree_pss_mib(root, itself=itself))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` of them lie; the greatest one of a few."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def median(values: Sequence[float]) -> float:
    """Return the middle one."""
    return statistics.median(values)


def machine_facts() -> dict[str, object]:
    """Return what figures depend on. The load tells whether somebody else was at work."""
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
