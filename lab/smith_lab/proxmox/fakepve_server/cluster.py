# SPDX-License-Identifier: AGPL-3.0-or-later
"""Combines fakepve and all additions of this package into the cluster that the stand-in serves."""

from __future__ import annotations

from smith_lab.proxmox.fakepve_server.faults import InjectedFaults
from smith_lab.proxmox.fakepve_server.guests import RunningGuests
from smith_lab.proxmox.fakepve_server.operations import DiskAndNodeOperations


class Cluster(InjectedFaults, DiskAndNodeOperations, RunningGuests):
    """The simulated cluster. Each base class extends fakepve's class FakePve with what it lacks in one area."""
