# SPDX-License-Identifier: AGPL-3.0-or-later
"""The cluster that the stand-in serves: fakepve, and what our playbooks need that fakepve lacks."""

from __future__ import annotations

from typing import Any

from smith_lab.proxmox.fakepve_server.access import AccessChecks
from smith_lab.proxmox.fakepve_server.configuration import ConfigurationChanges
from smith_lab.proxmox.fakepve_server.faults import InjectedFaults
from smith_lab.proxmox.fakepve_server.guests import RunningGuests
from smith_lab.proxmox.fakepve_server.operations import DiskAndNodeOperations
from smith_lab.proxmox.fakepve_server.tasks import TASK_SECONDS, TimedTasks


class Cluster(InjectedFaults, TimedTasks, AccessChecks, ConfigurationChanges, DiskAndNodeOperations, RunningGuests):
    """fakepve with every addition of this package. Each base class closes the gaps of one area."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.slow_s = 0.0
        self.faults: list[dict[str, Any]] = []
        self.task_faults: list[dict[str, Any]] = []
        self.task_seconds = dict(TASK_SECONDS)
        self.without_guest_agent: set[int] = set()
        self.request_log: list[dict[str, Any]] = []
