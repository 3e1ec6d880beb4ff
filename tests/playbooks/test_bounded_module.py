"""Limits of a module of community.proxmox: the memory of its process, in a warm run the size of Proxmox's answers."""

from __future__ import annotations

import resource
import subprocess
import sys

import requests
from ansible_collections.agent_smith.proxmox.plugins.plugin_utils.bounded_module import (
    MODULE_MEMORY_BYTES,
    bounded_module,
)
from ansible_collections.agent_smith.proxmox.plugins.plugin_utils.shared.bounded_http import BoundedAdapter

#: An upper bound of the memory of this process. The limit of a module's process is higher than MODULE_MEMORY_BYTES by
#: the memory of this process.
THIS_PROCESS_BYTES = 2 * 1024**3


def can_allocate(size: int) -> bool:
    """Return whether a process that is started now can use this many bytes of memory."""
    return (
        subprocess.run([sys.executable, "-c", f"bytearray({size})"], stderr=subprocess.DEVNULL, check=False).returncode
        == 0
    )


def test_the_process_of_a_module_has_a_memory_limit() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with bounded_module():
        assert can_allocate(MODULE_MEMORY_BYTES // 2)
        assert not can_allocate(MODULE_MEMORY_BYTES + THIS_PROCESS_BYTES)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_the_http_sessions_of_a_module_in_this_process_limit_the_size_of_answers() -> None:
    with bounded_module():
        assert isinstance(requests.Session().get_adapter("https://pve1"), BoundedAdapter)
    assert not isinstance(requests.Session().get_adapter("https://pve1"), BoundedAdapter)
