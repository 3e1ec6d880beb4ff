"""Settings of a lab for tests: those of a stand-in, or of no cluster at all."""

from __future__ import annotations

from typing import Any

from smith_lab.lab_test.lab_settings import LabSettings
from smith_lab.proxmox.stand_in import ProxmoxStandIn

#: The first VMID of the lab, and the number of VMIDs in each of its ranges.
FIRST, SIZE = 90_000, 20


def lab_settings(stand_in: ProxmoxStandIn | None = None, **more: Any) -> LabSettings:
    """Return the settings of a lab with three ranges of VMIDs. Without a stand-in, no test uses its address."""
    values: dict[str, Any] = {
        "host": stand_in.host if stand_in else "proxmox.invalid",
        "port": stand_in.port if stand_in else 8006,
        "user": stand_in.user if stand_in else "lab@pve",
        "token_id": stand_in.token_id if stand_in else "lab",
        "token_secret": stand_in.token_secret if stand_in else "0000",
        "ca_bundle": str(stand_in.ca_bundle) if stand_in else "",
        "node": "pve1",
        "template": 9000,
        "storage": "ceph",
        "backup_storage": "backups",
        "vmid_min": FIRST,
        "vmid_max": FIRST + 3 * SIZE - 1,
        "range_size": SIZE,
    }
    return LabSettings(**values | more)
