"""Declares the settings for new VMs: their placement, their VMIDs, and the templates that services may name."""

from __future__ import annotations

from pydantic import ValidationInfo, field_validator

from executor.settings.declare import Area, seconds, setting, whole_number
from executor.settings.types import MAX_VMID, MIN_VMID, Name, Names, OsTemplates, Templates


class NewVmSettings(Area):
    """On which nodes new VMs are placed, which VMIDs they get, and from which templates they are created."""

    smith_cluster: Name = setting(
        "default",
        "name under which the database stores the VMs of this Proxmox cluster; do not change it while mappings exist",
        example="default",
    )
    proxmox_nodes: Names = setting(
        (), "nodes on which new VMs may be placed", example="pve1,pve2", default_text="every node"
    )
    proxmox_storage: Name = setting(
        "", "storage for the disks of new VMs", example="local-zfs", default_text="the template's storage"
    )
    proxmox_bridge: Name = setting("vmbr0", "network bridge of new VMs", example="vmbr0")
    proxmox_pool: Name = setting("", "resource pool of new VMs", example="customers", default_text="none")
    proxmox_vmid_min: int = whole_number(100_000, "lowest VMID for new VMs", ge=MIN_VMID, le=MAX_VMID)
    proxmox_vmid_max: int = whole_number(
        199_999,
        "highest VMID for new VMs",
        ge=MIN_VMID,
        le=MAX_VMID,
        validate_default=True,  # an operator may set only PROXMOX_VMID_MIN, to more than this default
    )
    smith_vmid_quarantine_s: float = seconds(
        3600, "time after the deletion of a VM before its VMID is used for a new VM", ge=0
    )
    proxmox_templates: Templates = setting(
        {},
        "VM templates that services may name, as name=vmid",
        example="debian-12=9000,ubuntu-24.04=9001",
        default_text="none",
    )
    proxmox_full_clones: bool = setting(
        True,
        "create new VMs as full clones of their template; false: as linked clones, on the template's storage",
        example="true",
    )
    proxmox_os_templates: OsTemplates = setting(
        {},
        "container templates that services may name, as name=volume",
        example="debian-12=local:vztmpl/debian-12-standard_12.7-1_amd64.tar.zst",
        default_text="none",
    )
    smith_memory_overcommit: float = setting(
        1.0,
        "memory that may be allocated to the VMs of a node, as a multiple of the node's memory",
        ge=0.1,
        le=1000,
        example="1.0",
    )
    smith_cpu_overcommit: float = setting(
        4.0,
        "cores that may be allocated to the VMs of a node, as a multiple of the node's cores",
        ge=0.1,
        le=1000,
        example="4.0",
    )

    @field_validator("proxmox_vmid_max")
    @classmethod
    def _require_max_not_below_min(cls, value: int, info: ValidationInfo) -> int:
        if value < info.data.get("proxmox_vmid_min", MIN_VMID):
            raise ValueError("is wrong, it is less than PROXMOX_VMID_MIN")
        return value
