"""Defines the inputs of `plan.plan`: the operator's settings for all VMs, and the facts of one job.

The function `plan` decides which playbook runs for a job, and with which variables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from executor.model import GuestKind
from executor.settings.offered import allowed_values
from executor.settings.settings import Settings


@dataclass(frozen=True, kw_only=True)
class PlaybookSettings:
    """The operator's settings that `plan` uses. They are the same for all jobs."""

    cluster: str  #: the name of the Proxmox cluster
    templates: Mapping[str, int]  #: maps the name of each template to its VMID
    storage: str  #: the storage of new disks; '' to use the storage of the template
    #: The bridges, VLANs, storages and tags that a service may use. The playbook gets them as `vm.allowed`. An empty
    #: mapping allows every value, an empty list in it allows none.
    allowed: Mapping[str, Sequence[str]] = field(default_factory=dict)
    may_use_any_template: bool = False  #: True if a service may also use templates that the settings do not name
    bridge: str  #: the bridge of the first NIC if the properties name none; '' to request no bridge
    pool: str  #: the resource pool of new VMs; '' for no pool
    node: str  #: the node in PROXMOX_NODES; '' if PROXMOX_NODES names several nodes or none
    #: The folders of the playbooks, in search order. The first is the folder SMITH_ACTIONS_PATH, if the provider (the
    #: organisation that operates the agent) has set it. The last is the folder of Agent Smith's own playbooks.
    playbook_folders: Sequence[Path]
    playbook_timeout_s: float  #: how long one run of a playbook may take
    shutdown_timeout_s: float  #: how long a guest may take to shut down before it is powered off
    address_timeout_s: float = 10.0  #: how long a start waits until the guest agent reports an IP address
    #: maps the name of each OS template (for containers) to its volume
    os_templates: Mapping[str, str] = field(default_factory=dict)
    makes_full_clones: bool = True  #: False: the clones of templates are linked clones
    backup_storage: str = ""  #: the storage of backups; '' if none is set
    delete_grace_s: float = 0.0  #: how long a VM that is marked for deletion is kept; 0: it is deleted at once
    makes_final_backup: bool = False  #: True: a backup is made in `backup_storage` before a VM is deleted
    purges_deleted_vms: bool = False  #: True: a deleted VM is also removed from backup jobs, replication and HA
    removes_remaining_volumes: bool = False  #: True: the volumes that Proxmox could not delete with a VM are removed

    @classmethod
    def from_settings(cls, settings: Settings, collection_folder: Path) -> PlaybookSettings:
        """Return the part of the agent's settings that `plan` uses.

        `collection_folder` is the folder of our Ansible collection, which contains the folder `playbooks`.
        """
        provider_folders = [settings.smith_actions_path] if settings.smith_actions_path else []
        return cls(
            cluster=settings.smith_cluster,
            templates=settings.proxmox_templates,
            os_templates=settings.proxmox_os_templates,
            makes_full_clones=settings.proxmox_full_clones,
            storage=settings.proxmox_storage or "",
            allowed=allowed_values(settings),
            may_use_any_template=settings.proxmox_any_template,
            backup_storage=settings.proxmox_backup_storage,
            bridge=settings.proxmox_bridge or "",
            pool=settings.proxmox_pool or "",
            node=settings.proxmox_nodes[0] if len(settings.proxmox_nodes) == 1 else "",
            playbook_folders=(*provider_folders, collection_folder / "playbooks"),
            playbook_timeout_s=settings.smith_playbook_timeout_s,
            shutdown_timeout_s=settings.smith_shutdown_timeout_s,
            address_timeout_s=settings.smith_address_timeout_s,
            delete_grace_s=settings.smith_delete_grace_s,
            makes_final_backup=settings.smith_final_backup,
            purges_deleted_vms=settings.smith_delete_purge,
            removes_remaining_volumes=settings.smith_delete_remove_volumes,
        )


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """The facts that `plan` uses about one job, the job's service and the service's mapping to a VM."""

    action: str
    service_id: str
    agent_id: str = ""  #: the service's `agentId` in FulcrumCore, normally the id of this agent; '' if it is not known
    service_name: str
    #: The properties in the job's `params`, or the service's properties if `params` is empty. Secrets replace the
    #: references to FulcrumCore's vault. Empty for an action that uses no properties.
    properties: Mapping[str, Any] = field(repr=False)
    #: for `update`: the service's properties before the update
    previous_properties: Mapping[str, Any] = field(default_factory=dict, repr=False)
    vmid: int
    vm_name: str
    kind: str = GuestKind.QEMU
    node: str = ""  #: the node of the VM (for `create`: the node chosen for it); '' if it is not known
    #: for `create`: the VMID of the template on `node` that is cloned; 0 to use `PlaybookSettings.templates`
    template_vmid: int = 0
    #: True if the VMID was reserved but no `create` has succeeded. So a VM with this VMID may be a partial clone: a
    #: clone whose configuration was not finished. The description of a partial clone lacks the service's marker.
    may_be_partial_clone: bool = False
    target_node: str = ""  #: for `migrate`: the node to which the VM moves
    #: for `delete`: True if the VM is deleted only if it is marked for deletion and its grace period has ended
    only_if_grace_period_ended: bool = False
    snapshot: str = ""  #: for `snapshot`: the snapshot's name, which is the same in each attempt of the job
    time_left_s: float  #: how many seconds the run may take before the job's deadline
    secrets: tuple[str, ...] = field(default=(), repr=False)  #: texts that must be masked in all output of the run
