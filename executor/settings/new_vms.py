"""Declares the settings for new VMs: their placement, their VMIDs, and the templates that services may use."""

from __future__ import annotations

from pydantic import ValidationInfo, field_validator

from executor.settings.declare import SettingsArea, duration_setting, setting, whole_number_setting
from executor.settings.types import (
    MAX_VMID,
    MIN_VMID,
    AllowedNames,
    AllowedTags,
    AllowedVlans,
    NameWithSlashes,  # a name that may contain slashes
    OsTemplates,
    ProxmoxName,
    ProxmoxNames,
    Templates,
)


class NewVmSettings(SettingsArea):
    """Defines on which nodes new VMs are placed, which VMIDs they get, and from which templates they are created.

    A new VM can also be a container (LXC), which is created from a container template.
    """

    smith_cluster: NameWithSlashes = setting(
        "default",
        "name of this Proxmox cluster in the database; do not change it while the database has VMs of this cluster",
        example="default",
    )
    proxmox_nodes: ProxmoxNames = setting(
        (), "nodes on which new VMs may be placed", example="pve1,pve2", default_text="every node"
    )
    proxmox_storage: ProxmoxName = setting(
        "", "storage for the disks of new VMs", example="local-zfs", default_text="the template's storage"
    )
    proxmox_bridge: ProxmoxName = setting("vmbr0", "network bridge of new VMs", example="vmbr0")
    proxmox_bridges: AllowedNames = setting(
        (),
        "bridges that a service may use besides PROXMOX_BRIDGE; `*`: every bridge",
        example="vmbr1,customers",
        default_text="only PROXMOX_BRIDGE",
    )
    proxmox_vlans: AllowedVlans = setting(
        (),
        "VLANs and ranges of VLANs that a service may use; `*`: every VLAN",
        example="20,100-199",
        default_text="none",
    )
    proxmox_storages: AllowedNames = setting(
        (),
        "storages that a service may use besides PROXMOX_STORAGE, for disks, ISO images and cloud-init snippets; `*`: "
        "every storage",
        example="ceph,local-zfs",
        default_text="only PROXMOX_STORAGE",
    )
    proxmox_tags: AllowedTags = setting(
        (),
        "Proxmox tags that a service may set, and beginnings of tags such as `customer-*`; `*`: every tag",
        example="customer-*",
        default_text="none",
    )
    proxmox_pool: NameWithSlashes = setting("", "resource pool of new VMs", example="customers", default_text="none")
    proxmox_vmid_min: int = whole_number_setting(100_000, "lowest VMID for new VMs", ge=MIN_VMID, le=MAX_VMID)
    proxmox_vmid_max: int = whole_number_setting(
        199_999,
        "highest VMID for new VMs",
        ge=MIN_VMID,
        le=MAX_VMID,
        # The default must be checked against PROXMOX_VMID_MIN, because an operator may set only PROXMOX_VMID_MIN, for
        # example to 200,000.
        validate_default=True,
    )
    smith_vmid_quarantine_s: float = duration_setting(
        3600, "time for which the VMID of a deleted VM is not given to a new VM", ge=0
    )
    proxmox_templates: Templates = setting(
        {},
        "VM templates that a service may use; each has the form name=vmid, and the service specifies the name",
        example="debian-12=9000,ubuntu-24.04=9001",
        default_text="none",
    )
    proxmox_any_template: bool = setting(
        False,
        "let a service use templates that are not in PROXMOX_TEMPLATES and PROXMOX_OS_TEMPLATES: VM templates by their "
        "name or tag, container templates by their volume",
        example="false",
    )
    proxmox_full_clones: bool = setting(
        True,
        "create new VMs as full clones of their template; false: as linked clones, on the template's storage",
        example="true",
    )
    proxmox_os_templates: OsTemplates = setting(
        {},
        "container templates that a service may use; each has the form name=volume, and the service specifies the name",
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
        min_vmid = info.data.get("proxmox_vmid_min", MIN_VMID)  # absent if pydantic has rejected its value
        if value < min_vmid:
            raise ValueError("is wrong, it is less than PROXMOX_VMID_MIN")
        return value
