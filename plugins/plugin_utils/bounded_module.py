# SPDX-License-Identifier: Apache-2.0
"""Limits the memory of a module of community.proxmox, and the time in which it reads an answer of Proxmox."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

# If a library is missing, plugin_utils/client.py reports it before a module is run.
with contextlib.suppress(ImportError):
    from .shared.bounded_http import bounded_sessions

#: The memory that a module may use in addition to the memory that this process uses at the module's start.
MODULE_MEMORY_BYTES = 300 * 1024 * 1024
_PROCESS_STATUS = Path("/proc/self/status")


@contextlib.contextmanager
def bounded_module() -> Iterator[None]:
    """Limit the modules that are executed in the `with` block.

    The memory limit applies to this process, and to a process that Ansible starts for the module.

    In a playbook run of the agent, this process can execute the module itself (`executor/runs/warm/module_run.py`). For
    such a module, `bounded_sessions` limits the size of each HTTP answer, and the time until the answer is complete. A
    process that Ansible starts for the module needs no time limit, because it is ended together with the playbook run.
    """
    used_bytes = _used_data_bytes()
    if not used_bytes:  # the system is not Linux
        with bounded_sessions():
            yield
        return
    soft_limit, hard_limit = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [
        limit for limit in (soft_limit, hard_limit, used_bytes + MODULE_MEMORY_BYTES) if limit != resource.RLIM_INFINITY
    ]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard_limit))
    try:
        with bounded_sessions():
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft_limit, hard_limit))


def _used_data_bytes() -> int:
    """Return how many bytes of this process count towards RLIMIT_DATA; 0 if the kernel does not report them."""
    try:
        lines = _PROCESS_STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:")), 0)
