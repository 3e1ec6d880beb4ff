# SPDX-License-Identifier: AGPL-3.0-or-later
"""The cluster that the stand-in serves: fakepve, and what our playbooks need that fakepve lacks."""

from __future__ import annotations

from smith_lab.proxmox.fakepve_server.faults import InjectedFaults
from smith_lab.proxmox.fakepve_server.guests import RunningGuests
from smith_lab.proxmox.fakepve_server.operations import DiskAndNodeOperations


class Cluster(InjectedFaults, DiskAndNodeOperations, RunningGuests):
    """fakepve with every addition of this package. Each base class closes the gaps of one area."""
