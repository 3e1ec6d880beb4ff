"""Proxmox: does it answer, may the token do all that the playbooks do, and is there what VMs are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from executor.doctor.checks import Area, Check, Maker
from executor.errors import ErrorCode, JobError
from executor.placement import templates
from executor.proxmox import privileges
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.connection import ProxmoxConnection
from executor.proxmox.rows import NodeRow, StorageRow, VmRow
from executor.settings.settings import Settings

_MAKER = Maker(Area.PROXMOX)
#: Versions that this release is tested with.
KNOWN_MAJORS = (8, 9)
#: Share of the VMID range below which somebody should widen it.
SCARCE = 0.05


def look(settings: Settings) -> Iterator[Check]:
    """Look at Proxmox. What does not answer ends the looking; what is refused is told and passed over."""
    site = _Site(settings, ProxmoxReader(ProxmoxConnection.from_settings(settings)))
    try:
        version = site.reader.version()
    except JobError as error:
        yield _MAKER.fail("reachable", str(error), *_what_to_do(error, settings))
        return
    yield from _version(version, settings)
    for name, part in (
        ("quorum", _quorum),
        ("privileges", _privileges),
        ("nodes", _nodes),
        ("templates", _templates),
        ("os templates", _os_templates),
        ("storage", _storage),
        ("bridge", _bridge),
        ("vmid range", _vmid_range),
    ):
        yield from _guarded(name, part, site)


@dataclass(frozen=True)
class _Site:
    """What is asked, and answers that more than one look needs."""

    settings: Settings
    reader: ProxmoxReader

    @cached_property
    def major(self) -> int:
        head = self.reader.version().partition(".")[0]
        return int(head) if head.isdecimal() else 0

    @cached_property
    def nodes(self) -> list[NodeRow]:
        """The nodes that VMs may be placed on."""
        wanted = self.settings.proxmox_nodes
        return [node for node in self.reader.nodes() if not wanted or node.name in wanted]

    @cached_property
    def vms(self) -> list[VmRow]:
        return self.reader.vms()

    @cached_property
    def storages(self) -> frozenset[str]:
        """Where disks will be: the storage that is set, else the templates' own."""
        if self.settings.proxmox_storage:
            return frozenset({self.settings.proxmox_storage})
        rows = [row for row in self.vms if row.vmid in self.settings.proxmox_templates.values() and row.is_template]
        found = [templates.read(row, self.reader.vm_config(row.node, row.vmid)) for row in rows]
        return frozenset().union(*(template.storages for template in found))


def _guarded(name: str, part: Callable[[_Site], Iterator[Check]], site: _Site) -> Iterator[Check]:
    try:
        yield from part(site)
    except JobError as error:
        yield _MAKER.fail(name, str(error))


def _what_to_do(error: JobError, settings: Settings) -> tuple[str, ...]:
    if error.code is ErrorCode.PVE_TLS:
        return ("PROXMOX_CA_BUNDLE=/path/to/pve-root-ca.pem (on a node: /etc/pve/pve-root-ca.pem)",)
    if error.code is ErrorCode.PVE_AUTH:
        named = f"{settings.proxmox_user}!{settings.proxmox_token_id}" if settings.proxmox_token_id else "the password"
        return (f"is {named} right, and not expired?",)
    return ()


def _version(version: str, settings: Settings) -> Iterator[Check]:
    place = f"{settings.proxmox_host}:{settings.proxmox_port}"
    yield _MAKER.ok("reachable", place)
    if settings.proxmox_validate_certs:
        yield _MAKER.ok("tls", "verified")
    else:
        yield _MAKER.warn("tls", "the certificate is not checked", "PROXMOX_VALIDATE_CERTS=true")
    if version.partition(".")[0] in {str(major) for major in KNOWN_MAJORS}:
        yield _MAKER.ok("version", f"Proxmox VE {version}")
    else:
        yield _MAKER.warn("version", f"Proxmox VE {version or 'of no known version'}; tested are 8 and 9")


def _quorum(site: _Site) -> Iterator[Check]:
    if site.reader.is_quorate():
        yield _MAKER.ok("quorum")
    else:
        yield _MAKER.fail("quorum", "the cluster has none: nothing can be changed", "pvecm status")


def _privileges(site: _Site) -> Iterator[Check]:
    settings = site.settings
    wanted = privileges.needs(
        site.major,
        storages=site.storages,
        bridge=settings.proxmox_bridge,
        images={volume.partition(":")[0] for volume in settings.proxmox_os_templates.values()},
        backups=settings.proxmox_backup_storage,
    )
    held = {need.path: site.reader.permissions(need.path) for need in wanted}
    unmet = privileges.lacking(wanted, held)
    for need in wanted:
        if need in unmet:
            text = f"{', '.join(sorted(unmet[need]))} missing on {need.path}, {need.why}"
            yield _MAKER.fail("privileges", text, *_grants(site, need))
    if not unmet:
        yield _MAKER.ok("privileges", f"on {', '.join(dict.fromkeys(need.path for need in wanted))}")
    if len(site.nodes) > 1 and "Sys.Audit" not in site.reader.permissions("/nodes"):
        text = "new VMs go where their template is: without Sys.Audit on /nodes nobody shows us how full the nodes are"
        yield _MAKER.ok("placement", text)


def _grants(site: _Site, need: privileges.Need) -> list[str]:
    settings = site.settings
    return privileges.pveum_lines(
        [need], site.reader.roles(), user=settings.proxmox_user, token_id=settings.proxmox_token_id
    )


def _nodes(site: _Site) -> Iterator[Check]:
    known = {node.name: node.is_online for node in site.reader.nodes()}
    wanted = site.settings.proxmox_nodes or tuple(known)
    unknown = [name for name in wanted if name not in known]
    down = [name for name in wanted if known.get(name) is False]
    if unknown:
        yield _MAKER.fail("nodes", f"PROXMOX_NODES: there is no {', '.join(unknown)}, only {', '.join(known)}")
    elif len(down) == len(wanted):
        yield _MAKER.fail("nodes", "none is online")
    elif down:
        yield _MAKER.warn("nodes", f"{', '.join(down)} not online")
    else:
        yield _MAKER.ok("nodes", ", ".join(wanted))


def _templates(site: _Site) -> Iterator[Check]:
    rows = {row.vmid: row for row in site.vms}
    wanted = site.settings.proxmox_templates
    problems = [problem for name, vmid in wanted.items() if (problem := _problem_of(name, vmid, rows.get(vmid)))]
    for problem in problems:
        yield _MAKER.fail("templates", problem)
    if not wanted:
        there = sorted(row.name for row in site.vms if row.is_template)
        text = f"PROXMOX_TEMPLATES names none; by name or tag there are {', '.join(there) or 'none'}"
        yield (_MAKER.ok if there else _MAKER.warn)("templates", text)
    elif not problems:
        yield _MAKER.ok("templates", ", ".join(f"{name} is {vmid}" for name, vmid in wanted.items()))


def _os_templates(site: _Site) -> Iterator[Check]:
    """Containers' templates are files: look whether any node that may have them has."""
    rows = [row for row in site.reader.storages() if row.is_available]
    problems = []
    for name, volume in sorted(site.settings.proxmox_os_templates.items()):
        storage = volume.partition(":")[0]
        places = [row.node for row in rows if row.name == storage]
        if not any(volume in site.reader.volumes(node, storage, "vztmpl") for node in places):
            problems.append(f"{name}: no node has {volume}, or the token may not see it")
    hint = "pveam download <storage> <template>, or Datastore.Audit on its storage"
    for problem in problems:
        yield _MAKER.fail("os templates", problem, hint)
    if site.settings.proxmox_os_templates and not problems:
        yield _MAKER.ok("os templates", ", ".join(sorted(site.settings.proxmox_os_templates)))


def _problem_of(name: str, vmid: int, row: VmRow | None) -> str:
    if row is None:
        return f"{name}: VM {vmid} does not exist, or the token lacks VM.Audit on it"
    if row.kind != "qemu" or not row.is_template:
        return f"{name}: {row.kind} {vmid} ({row.name}) is no VM template"
    return ""


def _storage(site: _Site) -> Iterator[Check]:
    rows = site.reader.storages()
    for storage in sorted(site.storages):
        yield from _one_storage(storage, {row.node: row for row in rows if row.name == storage}, site.nodes)
    if not site.storages:
        yield _MAKER.ok("storage", "the template's")


def _one_storage(storage: str, rows: Mapping[str, StorageRow], nodes: Sequence[NodeRow]) -> Iterator[Check]:
    if not rows:
        yield _MAKER.fail("storage", f"there is no {storage}, or the token may not see it")
        return
    online = [node.name for node in nodes if node.is_online]
    absent = [name for name in online if name not in rows or not rows[name].is_available]
    if not all(row.holds_disks for row in rows.values()):
        yield _MAKER.fail("storage", f"{storage} holds no VM disks", f"pvesm set {storage} --content images,…")
    elif len(absent) == len(online):
        yield _MAKER.fail("storage", f"{storage} is available on none of {', '.join(online)}")
    elif absent:
        yield _MAKER.warn("storage", f"{storage} is not available on {', '.join(absent)}")
    else:
        yield _MAKER.ok("storage", storage)


def _bridge(site: _Site) -> Iterator[Check]:
    bridge, online = site.settings.proxmox_bridge, [node.name for node in site.nodes if node.is_online]
    absent = [name for name in online if bridge not in site.reader.bridges(name)]
    text = f"{bridge} does not exist on {', '.join(absent)}, or the token may not see it (SDN.Use)"
    if absent:
        yield (_MAKER.fail if len(absent) == len(online) else _MAKER.warn)("bridge", text)
    else:
        yield _MAKER.ok("bridge", bridge)


def _vmid_range(site: _Site) -> Iterator[Check]:
    low, high = site.settings.proxmox_vmid_min, site.settings.proxmox_vmid_max
    size = high - low + 1
    free = size - sum(low <= row.vmid <= high for row in site.vms)
    text = f"{free} of {size} between {low} and {high} are free, as far as the token sees"
    if free <= 0:
        yield _MAKER.fail("vmid range", text, "PROXMOX_VMID_MAX=…")
    elif free < size * SCARCE:
        yield _MAKER.warn("vmid range", text, "PROXMOX_VMID_MAX=…")
    else:
        yield _MAKER.ok("vmid range", text)
