"""A module of community.proxmox has bounds for the answers of Proxmox, in its own process and in that of a warm run."""

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

#: As much memory as this process may have in addition to a module's.
THIS_PROCESS_BYTES = 2 * 1024**3


def allocates(size: int) -> bool:
    """Return whether a process that is started now can use so much memory."""
    return (
        subprocess.run([sys.executable, "-c", f"bytearray({size})"], stderr=subprocess.DEVNULL, check=False).returncode
        == 0
    )


def test_the_process_of_a_module_has_a_limit_of_its_memory() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with bounded_module():
        assert allocates(MODULE_MEMORY_BYTES // 2)
        assert not allocates(MODULE_MEMORY_BYTES + THIS_PROCESS_BYTES)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_the_sessions_of_a_module_in_this_process_are_bounded() -> None:
    with bounded_module():
        assert isinstance(requests.Session().get_adapter("https://pve1"), BoundedAdapter)
    assert not isinstance(requests.Session().get_adapter("https://pve1"), BoundedAdapter)
