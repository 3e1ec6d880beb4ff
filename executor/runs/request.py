"""The inputs of `plan`: the operator's settings for all VMs, and the facts of one job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from executor.model import GuestKind
from executor.settings.settings import Settings


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """The settings of `plan` that are the same for all VMs."""

    cluster: str
    templates: Mapping[str, int]
    storage: str
    bridge: str
    pool: str
    node: str
    playbook_folders: Sequence[Path]  #: folders with playbooks, the provider's before ours
    playbook_timeout_s: float
    shutdown_timeout_s: float
    address_timeout_s: float = 10.0
    os_templates: Mapping[str, str] = field(default_factory=dict)
    full_clones: bool = True
    backup_storage: str = ""
    delete_grace_s: float = 0.0
    final_backup: bool = False  #: make one in `backup_storage` before a VM is deleted
    delete_purge: bool = False

    @classmethod
    def from_settings(cls, settings: Settings, home: Path) -> PlanSettings:
        """Return the site of these settings; `home` has our playbooks."""
        own = [settings.smith_actions_path] if settings.smith_actions_path else []
        return cls(
            cluster=settings.smith_cluster,
            templates=settings.proxmox_templates,
            os_templates=settings.proxmox_os_templates,
            full_clones=settings.proxmox_full_clones,
            storage=settings.proxmox_storage or "",
            backup_storage=settings.proxmox_backup_storage,
            bridge=settings.proxmox_bridge or "",
            pool=settings.proxmox_pool or "",
            node=settings.proxmox_nodes[0] if len(settings.proxmox_nodes) == 1 else "",
            playbook_folders=(*own, home / "playbooks"),
            playbook_timeout_s=settings.smith_playbook_timeout_s,
            shutdown_timeout_s=settings.smith_shutdown_timeout_s,
            address_timeout_s=settings.smith_address_timeout_s,
            delete_grace_s=settings.smith_delete_grace_s,
            final_backup=settings.smith_final_backup,
            delete_purge=settings.smith_delete_purge,
        )


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """The inputs that `plan` needs of one job, its service and its mapping."""

    action: str
    service_id: str
    service_name: str
    properties: Mapping[str, Any] = field(repr=False)  #: with resolved secrets
    #: `update`: the properties before it
    previous_properties: Mapping[str, Any] = field(default_factory=dict, repr=False)
    vmid: int
    vm_name: str
    kind: str = GuestKind.QEMU
    node: str = ""
    template_vmid: int = 0  #: `create`: the template to clone on `node`
    may_be_partial_clone: bool = False  #: the VMID is only reserved: a partial clone may lack its marker
    target_node: str = ""  #: `migrate`
    only_if_grace_period_ended: bool = False  #: `delete`: only if the grace period has ended
    snapshot: str = ""  #: `snapshot`: its name, the same in each attempt of the job
    time_left_s: float
    secrets: tuple[str, ...] = field(default=(), repr=False)
