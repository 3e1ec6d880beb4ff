# SPDX-License-Identifier: Apache-2.0
"""Bounds what an answer of Proxmox may cost a module of community.proxmox, which has no such bound."""

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
    """Bound the modules that are executed in the `with` block.

    A module that runs in this process gets bounded sessions. A process that is started inherits a limit of its memory,
    and its time ends with the run.
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
    """Return how much memory of this process RLIMIT_DATA counts; 0 if the kernel does not say it."""
    try:
        lines = _PROCESS_STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:")), 0)
