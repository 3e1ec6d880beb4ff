"""Measures the memory of a process tree without counting shared pages several times.

A fork shares most of its pages with its parent. The sum of the resident memory (RSS) counts such a page once per
process. The proportional set size (PSS) counts it as 1/n in each of the n processes that share it.
"""

from __future__ import annotations

import os
from pathlib import Path

from executor.processes import process_tree

BYTES_PER_KIB = 1024
BYTES_PER_MIB = 1024 * 1024
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def process_tree_memory_mib(root_pid: int, *, include_root_process: bool = True) -> float:
    """Return the memory of the descendants of a process in MiB. With `include_root_process`, include the process
    itself."""
    pids = process_tree.descendants(root_pid) | ({root_pid} if include_root_process else set())
    return sum(_memory_bytes(pid) for pid in pids) / BYTES_PER_MIB


def _memory_bytes(pid: int) -> int:
    """Return the PSS of a process; its RSS if the kernel does not show the PSS; 0 if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except (FileNotFoundError, PermissionError):
        # An old kernel does not have this file. Only root may read the file of a process that has forbidden debuggers.
        return _resident_bytes(pid)
    except OSError:  # the process has ended
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * BYTES_PER_KIB


def _resident_bytes(pid: int) -> int:
    try:
        _size, resident_pages, *_ = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
    except (OSError, ValueError):  # the process has ended
        return 0
    return int(resident_pages) * PAGE_BYTES
