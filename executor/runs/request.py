"""The inputs of `plan`: what an operator decided for all VMs, and what is known of one job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from executor.model import GuestKind
from executor.settings.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Site:
    """What the operator decided about every VM."""

    cluster: str
    templates: Mapping[str, int]
    storage: str
    bridge: str
    pool: str
    node: str
    folders: Sequence[Path]  #: where playbooks are looked for, the provider's own first
    playbook_timeout_s: float
    shutdown_timeout_s: float
    address_timeout_s: float = 10.0
    os_templates: Mapping[str, str] = field(default_factory=dict)
    full_clones: bool = True
    backup_storage: str = ""
    delete_grace_s: float = 0.0
    final_backup: bool = False  #: to `backup_storage`, before a VM is destroyed
    delete_purge: bool = False

    @classmethod
    def from_settings(cls, settings: Settings, home: Path) -> Site:
        """Read the site from the settings; `home` holds our own playbooks."""
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
            folders=(*own, home / "playbooks"),
            playbook_timeout_s=settings.smith_playbook_timeout_s,
            shutdown_timeout_s=settings.smith_shutdown_timeout_s,
            address_timeout_s=settings.smith_address_timeout_s,
            delete_grace_s=settings.smith_delete_grace_s,
            final_backup=settings.smith_final_backup,
            delete_purge=settings.smith_delete_purge,
        )


@dataclass(frozen=True, kw_only=True)
class Order:
    """One job's wish, in our words: what `plan` needs to know of job, service and mapping."""

    action: str
    service_id: str
    service_name: str
    properties: Mapping[str, Any] = field(repr=False)  #: with secrets filled in
    before: Mapping[str, Any] = field(default_factory=dict, repr=False)  #: `update`: what was in force
    vmid: int
    vm_name: str
    kind: str = GuestKind.QEMU
    node: str = ""
    template_vmid: int = 0  #: `create`: the template that serves `node`
    half_made: bool = False  #: the VMID is only reserved: a clone on it may not have its marker yet
    target_node: str = ""  #: `migrate`
    only_when_due: bool = False  #: `delete`: of a VM whose time of grace is over, and nothing else
    snapshot: str = ""  #: `snapshot`: its name, the same at every attempt of the job
    time_left_s: float
    secrets: tuple[str, ...] = field(default=(), repr=False)
