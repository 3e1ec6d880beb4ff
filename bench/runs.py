"""Measures playbook runs with plain ansible-runner or with the agent's runner, each mode in a process of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smith_lab.proxmox.stand_in import ProxmoxStandIn

from bench.measuring import run_in_own_process

Json = dict[str, Any]
#: The first VMID of each measurement. A measurement may use 10,000 VMIDs.
_first_vmids: Iterator[int] = itertools.count(start=200_000, step=10_000)


@dataclass(frozen=True, kw_only=True)
class RunAmounts:
    """How many playbook runs are measured in one mode.

    bench/one_mode.py explains these numbers. Their names there are `rounds`, `warm_up`, `burst` and `slots`.
    """

    cycles: int
    should_warm_up: bool
    burst_creates: int
    slots: int


def measure(stand_in: ProxmoxStandIn, folder: Path, mode: str, amounts: RunAmounts) -> Json:
    """Measure one mode (plain, cold or warm) and return the figures. Raises WorkloadFailed if a playbook run fails."""
    inputs = {
        "mode": mode,
        "first_vmid": next(_first_vmids),
        "rounds": amounts.cycles,
        "warm_up": int(amounts.should_warm_up),
        "burst": amounts.burst_creates,
        "slots": amounts.slots,
    }
    return run_in_own_process("bench.one_mode", inputs, folder, stand_in.env())
