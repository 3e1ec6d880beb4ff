"""Workload (a): the same playbooks by plain ansible-runner and by Agent Smith's runner, each in its own process."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smith_lab.proxmox.stand_in import ProxmoxStandIn

from bench.measuring import in_own_process

Json = dict[str, Any]
_vmids: Iterator[int] = itertools.count(200_000, 10_000)


def measure(stand_in: ProxmoxStandIn, folder: Path, mode: str, **amount: int) -> Json:
    """Run `rounds` lives, then `burst` creates, `slots` at once; return the figures. Raises WorkloadBroke."""
    order = {"mode": mode, "first_vmid": next(_vmids), **amount}
    return in_own_process("bench.one_mode", order, folder, stand_in.env())
