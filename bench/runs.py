"""Measures playbooks with plain ansible-runner and with the agent's runner, each mode in a process of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smith_lab.proxmox.stand_in import ProxmoxStandIn

from bench.measuring import in_own_process

Json = dict[str, Any]
_vmids: Iterator[int] = itertools.count(200_000, 10_000)


def measure(stand_in: ProxmoxStandIn, folder: Path, mode: str, **amounts: int) -> Json:
    """Run `rounds` cycles, then `burst` creates of which `slots` run in parallel; return the figures.

    `mode` is plain, cold or warm, as in bench/one_mode.py. Raises WorkloadFailed.
    """
    inputs = {"mode": mode, "first_vmid": next(_vmids), **amounts}
    return in_own_process("bench.one_mode", inputs, folder, stand_in.env())
