# SPDX-License-Identifier: Apache-2.0
"""Limits the memory and the time that an answer of Proxmox may take in a module of community.proxmox."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

with contextlib.suppress(ImportError):  # `client.connect` reports a missing library before a module is executed
    from .shared.bounded_http import bounded_sessions

#: How much more memory than this process a module may use.
MODULE_MEMORY_BYTES = 300 * 1024 * 1024
_PROCESS_STATUS = Path("/proc/self/status")


@contextlib.contextmanager
def bounded_module() -> Iterator[None]:
    """Limit the modules that are executed in the `with` block.

    For a module in this process, the HTTP answers are limited. A module in a process of its own inherits a limit of its
    memory, and is ended with the run.
    """
    used_bytes = _data_bytes()
    if not used_bytes:  # not Linux
        with bounded_sessions():
            yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [limit for limit in (soft, hard, used_bytes + MODULE_MEMORY_BYTES) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        with bounded_sessions():
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _data_bytes() -> int:
    """Return how many bytes of this process count towards RLIMIT_DATA; 0 if the kernel does not say it."""
    try:
        lines = _PROCESS_STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:")), 0)
