"""Adds guests to a lab, lists them and sweeps them, for the tests of `smith lab-test`."""

from __future__ import annotations

from typing import Any

from smith_lab.lab_test import sweeper
from smith_lab.lab_test.cluster import LabCluster
from smith_lab.lab_test.reserved_range import ReservedRange
from smith_lab.proxmox.stand_in import ProxmoxStandIn
from support.lab_settings import FIRST, SIZE

from executor.shared.marker import marker_for


def add_vm(
    stand_in: ProxmoxStandIn, reserved: ReservedRange, position: int = 1, *, is_locked: bool = False, **more: Any
) -> int:
    """Add a VM as a test creates one in its reserved range of VMIDs; return its VMID."""
    service_id = reserved.new_service_id()
    config = {"description": marker_for(service_id), **more.pop("config", {})}
    vmid = reserved.vmids[position]
    name = f"{reserved.prefix}-web-{service_id[:8]}"
    stand_in.control("add", **{"vmid": vmid, "name": name, "node": "pve2", "config": config} | more)
    if is_locked:
        stand_in.control("lock", vmid=vmid, lock="clone")
    return vmid


def vmids_in_lab(stand_in: ProxmoxStandIn) -> list[int]:
    return sorted(guest["vmid"] for guest in stand_in.guests() if FIRST <= guest["vmid"] < FIRST + 3 * SIZE)


def sweep(cluster: LabCluster) -> dict[str, str]:
    """Sweep the lab; return the problem of each removal by the name of the guest or backup."""
    return {removal.finding.name: removal.problem for removal in sweeper.sweep(cluster, sweeper.list_findings(cluster))}
