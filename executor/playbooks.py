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

from executor import actions
from executor.errors import ErrorCode, JobError
from executor.jobs import PlaybookRun
from executor.settings import Settings
from executor.vm_properties import NicProperties, VmProperties

#: Actions whose properties describe the VM itself; all others get the VM's identity only.
SHAPING_ACTIONS = frozenset({"create", "update"})
#: Properties that the playbooks know by the same name and leave alone when they are not given.
HARDWARE = ("sockets", "cpu_type", "balloon_mib", "onboot", "protection", "guest_agent")
MAX_DESCRIPTION_LENGTH = 200
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

    @classmethod
    def from_settings(cls, settings: Settings, home: Path) -> Site:
        """Read the site from the settings; `home` holds our own playbooks."""
        own = [settings.smith_actions_path] if settings.smith_actions_path else []
        return cls(
            cluster=settings.smith_cluster,
            templates=settings.proxmox_templates,
            storage=settings.proxmox_storage or "",
            bridge=settings.proxmox_bridge or "",
            pool=settings.proxmox_pool or "",
            node=settings.proxmox_nodes[0] if len(settings.proxmox_nodes) == 1 else "",
            folders=(*own, home / "playbooks"),
            playbook_timeout_s=settings.smith_playbook_timeout_s,
            shutdown_timeout_s=settings.smith_shutdown_timeout_s,
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
    node: str = ""
    template_vmid: int = 0  #: `create`: the template that serves `node`
    half_made: bool = False  #: the VMID is only reserved: a clone on it may not have its marker yet
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
    }
    if order.snapshot:
        vm["snapshot"] = order.snapshot
    if order.half_made and order.action == "delete":
        vm["half_made"] = True
    if order.action in SHAPING_ACTIONS:
        vm |= _shape(order, site)
    if not action.is_ours:
        vm["properties"] = dict(order.properties)
    return PlaybookRun(
        ident=f"{order.action}-{uuid.uuid4().hex[:12]}",
        action=order.action,
        playbook=action.playbook,
        vm=vm,
        timeout_s=timeout_s,
        secrets=order.secrets,
    )


def wanted_bridge(properties: VmProperties, site: Site) -> str:
    """Return the bridge of the first NIC."""
    return properties.network.bridge or site.bridge


def _shape(order: Order, site: Site) -> dict[str, Any]:
    properties = read_properties(order.properties)
    shape: dict[str, Any] = {
        "cores": properties.cores,
        "memory_mib": properties.memory_mib,
        "disk_gib": properties.disk_gib,
        "tags": list(properties.tags),
        "description": describe(order.service_name),
        **_hardware(properties),
    }
    if order.action == "create":
        shape |= {
            "template_vmid": order.template_vmid or _template(properties, site),
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


def _template(properties: VmProperties, site: Site) -> int:
    if properties.image is None:
        raise JobError(ErrorCode.INVALID_REQUEST, "image is missing: it names the template")
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
