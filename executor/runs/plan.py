"""Step 5 of 7, the deciding half: an action, a service's properties and its mapping become a PlaybookRun.

Everything here is pure but for the look whether a playbook's file exists. Text from outside arrives here for the last
time as JSON and leaves as values of the extra var `vm`; it never becomes a path, a template or a shell word.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from executor.errors import ErrorCode, JobError
from executor.model import GuestKind, PlaybookRun
from executor.runs import actions
from executor.runs.vm_properties import NicProperties, VmProperties
from executor.settings.settings import Settings

#: Actions whose properties describe the VM itself; all others get the VM's identity only.
SHAPING_ACTIONS = frozenset({"create", "update"})
#: Actions of ours that read a service's properties: a resize takes the disks' sizes.
READING_ACTIONS = SHAPING_ACTIONS | {"resize"}
#: Properties that the playbooks know by the same name and leave alone when they are not given.
HARDWARE = ("sockets", "cpu_type", "balloon_mib", "swap_mib", "onboot", "protection", "guest_agent")
MAX_DESCRIPTION_LENGTH = 200
#: How much of an action's name is in its runs' idents: they name folders, and ansible-core 2.21 has a socket in those,
#: whose whole path may have 107 characters.
LONGEST_IN_IDENT = 16
#: How a marker begins (`mappings.marker_for`); Proxmox's reader takes it in any case.
MARKER_BEGINS = re.compile(r"smith-uid\s*=", re.IGNORECASE)


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


def find_playbook(action: str, folders: Sequence[Path]) -> Path:
    """Return the playbook of an action. Raises JobError UNSUPPORTED_ACTION when there is none that may be run."""
    return actions.find(action, folders).playbook


def read_properties(properties: Mapping[str, Any]) -> VmProperties:
    """Check a service's properties. Raises JobError INVALID_REQUEST naming the members, never their values."""
    try:
        return VmProperties.model_validate(dict(properties))
    except ValidationError as error:
        problems = [f"{'.'.join(str(part) for part in item['loc'])} {_reason(item)}" for item in error.errors()]
        raise JobError(ErrorCode.INVALID_REQUEST, "; ".join(problem.strip() for problem in problems)[:400]) from None
    except RecursionError:
        raise JobError(ErrorCode.INVALID_REQUEST, "properties are nested too deeply") from None


def plan(order: Order, site: Site) -> PlaybookRun:
    """Choose the playbook and turn the wish into its extra var.

    Raises JobError: UNSUPPORTED_ACTION, INVALID_REQUEST (a property), NOT_FOUND (no template of that name).
    """
    action = actions.find(order.action, site.folders)
    actions.check_properties(action, order.properties)
    timeout_s = min(site.playbook_timeout_s, order.time_left_s)
    vm: dict[str, Any] = {
        "service_id": order.service_id,
        "vmid": order.vmid,
        "name": order.vm_name,
        "cluster": site.cluster,
        "node": order.node or site.node,
        "timeout_s": int(timeout_s),
        "shutdown_timeout_s": int(min(site.shutdown_timeout_s, max(timeout_s / 2, 1))),
        "address_timeout_s": int(site.address_timeout_s),
    }
    if order.kind != GuestKind.QEMU:
        vm["kind"] = str(order.kind)
    vm |= _particulars(order, site, is_ours=action.is_ours)
    if not action.is_ours:
        vm["properties"] = dict(order.properties)
    return PlaybookRun(
        ident=f"{order.action[:LONGEST_IN_IDENT]}-{uuid.uuid4().hex[:12]}",
        action=order.action,
        playbook=action.playbook,
        vm=vm,
        timeout_s=timeout_s,
        secrets=order.secrets,
    )


def _particulars(order: Order, site: Site, *, is_ours: bool) -> dict[str, Any]:
    """Return what one action takes beside the VM's identity."""
    if order.action in SHAPING_ACTIONS:
        return _shape(order, site)
    if order.action == "resize" and is_ours:
        return _sizes(read_properties(order.properties))
    if order.action == "backup" and is_ours and not site.backup_storage:
        raise JobError(ErrorCode.INVALID_REQUEST, "a backup needs PROXMOX_BACKUP_STORAGE, which is not set")
    found: dict[str, dict[str, Any]] = {
        "snapshot": {"snapshot": order.snapshot},
        "backup": {"backup_storage": site.backup_storage},
        "migrate": {"target_node": order.target_node},
        "delete": _deletion(order, site),
    }
    return {name: value for name, value in found.get(order.action, {}).items() if value not in ("", False)}


def _deletion(order: Order, site: Site) -> dict[str, Any]:
    return {
        "grace_s": int(site.delete_grace_s) or "",
        "only_when_due": order.only_when_due,
        "half_made": order.half_made,
        "final_backup": site.backup_storage if site.final_backup else "",
        "purge": site.delete_purge,
    }


def wanted_bridge(properties: VmProperties, site: Site) -> str:
    """Return the bridge of the first NIC."""
    return properties.network.bridge or site.bridge


def _shape(order: Order, site: Site) -> dict[str, Any]:
    properties = read_properties(order.properties)
    if properties.kind != order.kind:
        raise JobError(ErrorCode.INVALID_REQUEST, f"the service has a guest of kind {order.kind}, and keeps it")
    shape: dict[str, Any] = {
        "cores": properties.cores,
        "memory_mib": properties.memory_mib,
        "disk_gib": properties.disk_gib,
        "description": describe(order.service_name),
        **_hardware(properties),
    }
    if order.kind == GuestKind.QEMU:
        shape["tags"] = list(properties.tags)
    if order.action == "create":
        shape |= {
            **_source(properties, order, site),
            "storage": site.storage,
            "pool": site.pool,
            "network": _network(properties, site),
            "cloud_init": _cloud_init(properties),
        }
        return shape | ({"networks": _nics(properties)} if properties.networks else {})
    # An update sends the whole set: only what really differs may touch the guest's network and logins.
    if _differs(order, "network"):
        shape["network"] = _network(properties, site)
    if _differs(order, "networks"):
        shape["networks"] = _nics(properties)
    if properties.allow_reboot:
        shape["allow_reboot"] = True
    changed = [name for name in ("ciUser", "ciPassword", "sshPublicKeys", "vendorSnippet") if _differs(order, name)]
    if changed:
        cloud_init = _cloud_init(properties)
        wanted = {"ciUser": "user", "ciPassword": "password", "sshPublicKeys": "ssh_public_keys"}
        wanted |= {"vendorSnippet": "vendor_snippet"}
        if "sshPublicKeys" in changed and not properties.ssh_public_keys:
            # Leaving them would report a change that was not made: the old keys would still open the VM.
            raise JobError(ErrorCode.INVALID_REQUEST, "sshPublicKeys cannot be emptied, only replaced")
        shape["cloud_init"] = {wanted[name]: cloud_init[wanted[name]] for name in changed if wanted[name] in cloud_init}
    return shape


def _differs(order: Order, name: str) -> bool:
    return name in order.properties and order.properties.get(name) != order.before.get(name)


def _source(properties: VmProperties, order: Order, site: Site) -> dict[str, Any]:
    """Return what the guest is made of."""
    if not properties.is_sourced:
        raise JobError(ErrorCode.INVALID_REQUEST, "image is missing: it names the template (or iso, blank, osTemplate)")
    if properties.image:
        linked = {} if site.full_clones else {"full_clone": False}
        return {"template_vmid": order.template_vmid or _template(properties, site), **linked}
    if not site.storage:
        raise JobError(ErrorCode.INVALID_REQUEST, "PROXMOX_STORAGE is not set, and without a template it must be")
    if properties.os_template:
        return {"os_template": os_template(properties.os_template, site.os_templates)}
    return {"iso": properties.iso} if properties.iso else {"blank": True}


def os_template(name: str, known: Mapping[str, str]) -> str:
    """Return the volume that a container is made of. Raises JobError NOT_FOUND."""
    if ":" in name:
        return name
    if name not in known:
        named = ", ".join(sorted(known)) or "none"
        raise JobError(ErrorCode.NOT_FOUND, f"no OS template is called {name} (PROXMOX_OS_TEMPLATES has: {named})")
    return known[name]


def _sizes(properties: VmProperties) -> dict[str, Any]:
    disks = [{"disk": disk.disk, "size_gib": disk.size_gib} for disk in properties.disks if disk.size_gib]
    return {"disk_gib": properties.disk_gib, **({"disks": disks} if disks else {})}


def _template(properties: VmProperties, site: Site) -> int:
    assert properties.image is not None  # noqa: S101 (asked before)
    if (vmid := site.templates.get(properties.image)) is None:
        known = ", ".join(sorted(site.templates)) or "none"
        raise JobError(
            ErrorCode.NOT_FOUND, f"no template is called {properties.image} (PROXMOX_TEMPLATES has: {known})"
        )
    return vmid


def _hardware(properties: VmProperties) -> dict[str, Any]:
    """Return what the playbooks leave alone unless somebody asks."""
    asked = {name: getattr(properties, name) for name in HARDWARE}
    lists = {
        "boot_order": list(properties.boot_order),
        "disks": [disk.model_dump(exclude_none=True) for disk in properties.disks],
    }
    return {name: value for name, value in (asked | lists).items() if value not in (None, [])}


def _network(properties: VmProperties, site: Site) -> dict[str, Any]:
    network = properties.network
    found = {
        **network.model_dump(exclude_none=True),
        "bridge": wanted_bridge(properties, site),
        "dns_servers": list(network.dns_servers),
        "search_domains": list(network.search_domains),
    }
    return {name: value for name, value in found.items() if value != "" and (value or name != "search_domains")}


def _nics(properties: VmProperties) -> list[dict[str, Any]]:
    return [nic.model_dump(include=set(NicProperties.model_fields), exclude_none=True) for nic in properties.networks]


def _cloud_init(properties: VmProperties) -> dict[str, Any]:
    found = {
        "user": properties.ci_user,
        "password": properties.ci_password,
        "ssh_public_keys": list(properties.ssh_public_keys),
        "vendor_snippet": properties.vendor_snippet,
    }
    return {name: value for name, value in found.items() if value}


def describe(service_name: str) -> str:
    """Return one printable line about the service that is no marker: a name must not claim another service's VM."""
    printable = "".join(char if char.isprintable() else " " for char in service_name)
    return MARKER_BEGINS.sub("smith-uid ", " ".join(printable.split()))[:MAX_DESCRIPTION_LENGTH]


def _reason(item: Mapping[str, Any]) -> str:
    return "is missing" if item["type"] == "missing" else str(item["msg"]).removeprefix("Value error, ")
