"""Variables and facts of guests, for tests of the functions that decide from such facts what an action does."""

from __future__ import annotations

import hashlib
from typing import Any

from ansible_collections.agent_smith.proxmox.plugins.plugin_utils import (
    guest_facts,
)

SERVICE = "0f7e2c1a-1111-4222-8333-944455556666"


def make_vm(**more: Any) -> dict[str, Any]:
    """Return the variable `vm` of an action."""
    return {"service_id": SERVICE, "vmid": 500, "name": "web-0f7e2c1a", **more}


def make_vm_facts(status: str = "stopped", **config: Any) -> dict[str, Any]:
    """Return the facts of a VM that a look-up derives from its configuration."""
    base = {"name": "web-0f7e2c1a", "description": f"smith-uid={SERVICE}", "cores": 2, "memory": "2048"}
    disks = {"scsi0": "local-lvm:vm-500-disk-0,size=8G", "ide2": "local-lvm:vm-500-cloudinit,media=cdrom"}
    rows = [{"key": key, "value": value} for key, value in {**base, **disks, **config}.items() if value is not None]
    return {
        **{"exists": True, "kind": "qemu", "vmid": 500, "node": "pve1", "template": {}},
        **guest_facts.facts_from_configuration(rows, {"status": status}),
    }


def text_line(text: str) -> str:
    """Return the line in a VM's notes that states line count and hash of the text which the service has set there."""
    return f"smith-text={len(text.split(chr(10)))}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


#: What `text_line` returns for the texts "a shop" and "b".
SHOP, B = text_line("a shop"), text_line("b")


def make_container_facts(**config: Any) -> dict[str, Any]:
    """Return the facts of a running container that a look-up derives from its configuration."""
    base = {"hostname": "web-0f7e2c1a", "description": f"smith-uid={SERVICE}", "cores": 2, "memory": 512, "swap": 0}
    disks = {"rootfs": "ceph:vm-500-disk-0,size=4G", "net0": "name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:00:01,ip=dhcp"}
    rows = [{"key": key, "value": value} for key, value in {**base, **disks, "tags": "smith", **config}.items()]
    return {
        **{"exists": True, "kind": "lxc", "vmid": 500, "node": "pve1", "template": {}},
        **guest_facts.container_facts_from_configuration(rows, {"status": "running"}),
    }
