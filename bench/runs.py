"""Measures playbook runs with plain ansible-runner or with the agent's runner, each mode in a process of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smith_lab.proxmox.stand_in import ProxmoxStandIn

from bench.measuring import in_own_process

Json = dict[str, Any]
# The first VMID of each measurement.
_vmids: Iterator[int] = itertools.count(200_000, 10_000)


def measure(stand_in: ProxmoxStandIn, folder: Path, mode: str, **amounts: int) -> Json:
    """Measure one mode (plain, cold or warm) and return the figures.

    bench/one_mode.py explains the modes and the numbers in `amounts`: `rounds`, `warm_up`, `burst` and `slots`. Raises
    WorkloadFailed if a playbook run fails.
    """
    inputs = {"mode": mode, "first_vmid": next(_vmids), **amounts}
    return in_own_process("bench.one_mode", inputs, folder, stand_in.env())
