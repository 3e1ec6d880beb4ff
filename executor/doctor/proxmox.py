"""Checks Proxmox: the API, the token's privileges, and the nodes, templates, storages and bridges for VMs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from executor.doctor.checks import Area, Check, CheckFactory
from executor.errors import ErrorCode, JobError
from executor.placement import templates
from executor.proxmox import privileges
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.connection import ProxmoxConnection
from executor.proxmox.rows import NodeRow, StorageRow, VmRow
from executor.settings.settings import Settings

_CHECK = CheckFactory(Area.PROXMOX)
#: Major versions of Proxmox VE that this release is tested with.
TESTED_MAJORS = (8, 9)
#: The check warns when a smaller share of the VMID range is free.
MIN_FREE_VMID_SHARE = 0.05


def check_proxmox(settings: Settings) -> Iterator[Check]:
    """Check Proxmox. If Proxmox does not answer the first request, no further check runs.

    If a later request fails, only its check fails, and the following checks still run.
    """
    context = _Context(settings, ProxmoxReader(ProxmoxConnection.from_settings(settings)))
    try:
        version = context.reader.version()
    except JobError as error:
        yield _CHECK.fail("reachable", str(error), *_connection_hints(error, settings))
        return
    yield from _version(version, settings)
    for name, check in (
        ("quorum", _quorum),
        ("privileges", _privileges),
        ("nodes", _nodes),
        ("templates", _templates),
        ("os templates", _os_templates),
        ("storage", _storage),
        ("bridge", _bridge),
        ("vmid range", _vmid_range),
    ):
        yield from _run_check(name, check, context)


@dataclass(frozen=True)
class _Context:
    """The settings, the client that reads from Proxmox, and the answers that several checks need.

    Each answer is requested once, at its first use.
    """

    settings: Settings
    reader: ProxmoxReader

    @cached_property
    def major_version(self) -> int:
        """The major version of Proxmox VE, 0 when it is unknown."""
        number = self.reader.version().partition(".")[0]
        return int(number) if number.isdecimal() else 0

    @cached_property
    def nodes(self) -> list[NodeRow]:
        """The nodes on which the agent may place VMs."""
        wanted = self.settings.proxmox_nodes
        return [node for node in self.reader.nodes() if not wanted or node.name in wanted]

    @cached_property
    def vms(self) -> list[VmRow]:
        """The VMs, containers and templates that the token may see."""
        return self.reader.vms()

    @cached_property
    def storages(self) -> frozenset[str]:
        """The storages for disks: PROXMOX_STORAGE, or else the storages of the templates in PROXMOX_TEMPLATES."""
        if self.settings.proxmox_storage:
            return frozenset({self.settings.proxmox_storage})
        rows = [row for row in self.vms if row.vmid in self.settings.proxmox_templates.values() and row.is_template]
        clonable = [templates.read(row, self.reader.vm_config(row.node, row.vmid)) for row in rows]
        return frozenset().union(*(template.storages for template in clonable))


def _run_check(name: str, check: Callable[[_Context], Iterator[Check]], context: _Context) -> Iterator[Check]:
    """Run one check. If Proxmox returns an error, the result is a failed check."""
    try:
        yield from check(context)
    except JobError as error:
        yield _CHECK.fail(name, str(error))


def _connection_hints(error: JobError, settings: Settings) -> tuple[str, ...]:
    if error.code is ErrorCode.PVE_TLS:
        return ("PROXMOX_CA_BUNDLE=/path/to/pve-root-ca.pem (on a node: /etc/pve/pve-root-ca.pem)",)
    if error.code is ErrorCode.PVE_AUTH:
        credential = (
            f"{settings.proxmox_user}!{settings.proxmox_token_id}" if settings.proxmox_token_id else "the password"
        )
        return (f"check that {credential} is right and not expired",)
    return ()


def _version(version: str, settings: Settings) -> Iterator[Check]:
    yield _CHECK.ok("reachable", f"{settings.proxmox_host}:{settings.proxmox_port}")
    if settings.proxmox_validate_certs:
        yield _CHECK.ok("tls", "verified")
    else:
        yield _CHECK.warn("tls", "the certificate is not verified", "PROXMOX_VALIDATE_CERTS=true")
    if version.partition(".")[0] in {str(major) for major in TESTED_MAJORS}:
        yield _CHECK.ok("version", f"Proxmox VE {version}")
    else:
        yield _CHECK.warn("version", f"Proxmox VE {version or 'of unknown version'}; tested with 8 and 9")


def _quorum(context: _Context) -> Iterator[Check]:
    if context.reader.is_quorate():
        yield _CHECK.ok("quorum")
    else:
        yield _CHECK.fail("quorum", "the cluster has no quorum: no VM can be changed", "pvecm status")


def _privileges(context: _Context) -> Iterator[Check]:
    settings = context.settings
    needs = privileges.needs(
        context.major_version,
        storages=context.storages,
        bridge=settings.proxmox_bridge,
        images={volume.partition(":")[0] for volume in settings.proxmox_os_templates.values()},
        backups=settings.proxmox_backup_storage,
    )
    granted = {need.path: context.reader.permissions(need.path) for need in needs}
    unmet = privileges.unmet_needs(needs, granted)
    for need in needs:
        if need in unmet:
            text = f"{', '.join(sorted(unmet[need]))} missing on {need.path}, {need.why}"
            yield _CHECK.fail("privileges", text, *_grant_commands(context, need))
    if not unmet:
        yield _CHECK.ok("privileges", f"on {', '.join(dict.fromkeys(need.path for need in needs))}")
    if len(context.nodes) > 1 and "Sys.Audit" not in context.reader.permissions("/nodes"):
        reason = "the token may not read the load of the nodes (Sys.Audit on /nodes)"
        text = f"each new VM is placed on its template's node, because {reason}"
        yield _CHECK.ok("placement", text)


def _grant_commands(context: _Context, need: privileges.Need) -> list[str]:
    """Return the `pveum` commands that grant the token the needed privileges."""
    settings = context.settings
    return privileges.pveum_lines(
        [need], context.reader.roles(), user=settings.proxmox_user, token_id=settings.proxmox_token_id
    )


def _nodes(context: _Context) -> Iterator[Check]:
    known = {node.name: node.is_online for node in context.reader.nodes()}
    wanted = context.settings.proxmox_nodes or tuple(known)
    unknown = [name for name in wanted if name not in known]
    offline = [name for name in wanted if known.get(name) is False]
    if unknown:
        yield _CHECK.fail("nodes", f"PROXMOX_NODES: there is no {', '.join(unknown)}, only {', '.join(known)}")
    elif len(offline) == len(wanted):
        yield _CHECK.fail("nodes", "none is online")
    elif offline:
        yield _CHECK.warn("nodes", f"{', '.join(offline)} not online")
    else:
        yield _CHECK.ok("nodes", ", ".join(wanted))


def _templates(context: _Context) -> Iterator[Check]:
    rows = {row.vmid: row for row in context.vms}
    wanted = context.settings.proxmox_templates
    problems = [problem for name, vmid in wanted.items() if (problem := _template_problem(name, vmid, rows.get(vmid)))]
    for problem in problems:
        yield _CHECK.fail("templates", problem)
    if not wanted:
        names = sorted(row.name for row in context.vms if row.is_template)
        text = f"PROXMOX_TEMPLATES is empty; found by name or tag: {', '.join(names) or 'none'}"
        yield (_CHECK.ok if names else _CHECK.warn)("templates", text)
    elif not problems:
        yield _CHECK.ok("templates", ", ".join(f"{name} is {vmid}" for name, vmid in wanted.items()))


def _os_templates(context: _Context) -> Iterator[Check]:
    """Check that each container template of PROXMOX_OS_TEMPLATES exists on at least one node."""
    rows = [row for row in context.reader.storages() if row.is_available]
    problems = []
    for name, volume in sorted(context.settings.proxmox_os_templates.items()):
        storage = volume.partition(":")[0]
        nodes = [row.node for row in rows if row.name == storage]
        if not any(volume in context.reader.volumes(node, storage, "vztmpl") for node in nodes):
            problems.append(f"{name}: no node has {volume}, or the token may not see it")
    hint = "pveam download <storage> <template>, or Datastore.Audit on its storage"
    for problem in problems:
        yield _CHECK.fail("os templates", problem, hint)
    if context.settings.proxmox_os_templates and not problems:
        yield _CHECK.ok("os templates", ", ".join(sorted(context.settings.proxmox_os_templates)))


def _template_problem(name: str, vmid: int, row: VmRow | None) -> str:
    if row is None:
        return f"{name}: VM {vmid} does not exist, or the token lacks VM.Audit on it"
    if row.kind != "qemu" or not row.is_template:
        return f"{name}: {row.kind} {vmid} ({row.name}) is not a VM template"
    return ""


def _storage(context: _Context) -> Iterator[Check]:
    rows = context.reader.storages()
    for storage in sorted(context.storages):
        yield from _one_storage(storage, {row.node: row for row in rows if row.name == storage}, context.nodes)
    if not context.storages:
        yield _CHECK.ok("storage", "the template's")


def _one_storage(storage: str, rows: Mapping[str, StorageRow], nodes: Sequence[NodeRow]) -> Iterator[Check]:
    if not rows:
        yield _CHECK.fail("storage", f"there is no {storage}, or the token may not see it")
        return
    online = [node.name for node in nodes if node.is_online]
    without = [name for name in online if name not in rows or not rows[name].is_available]
    if not all(row.holds_disks for row in rows.values()):
        yield _CHECK.fail("storage", f"{storage} does not accept VM disks", f"pvesm set {storage} --content images,…")
    elif len(without) == len(online):
        yield _CHECK.fail("storage", f"{storage} is available on none of {', '.join(online)}")
    elif without:
        yield _CHECK.warn("storage", f"{storage} is not available on {', '.join(without)}")
    else:
        yield _CHECK.ok("storage", storage)


def _bridge(context: _Context) -> Iterator[Check]:
    bridge, online = context.settings.proxmox_bridge, [node.name for node in context.nodes if node.is_online]
    without = [name for name in online if bridge not in context.reader.bridges(name)]
    text = f"{bridge} does not exist on {', '.join(without)}, or the token may not see it (SDN.Use)"
    if without:
        yield (_CHECK.fail if len(without) == len(online) else _CHECK.warn)("bridge", text)
    else:
        yield _CHECK.ok("bridge", bridge)


def _vmid_range(context: _Context) -> Iterator[Check]:
    low, high = context.settings.proxmox_vmid_min, context.settings.proxmox_vmid_max
    size = high - low + 1
    free = size - sum(low <= row.vmid <= high for row in context.vms)
    text = f"{free} of {size} between {low} and {high} are free among the VMs that the token sees"
    if free <= 0:
        yield _CHECK.fail("vmid range", text, "PROXMOX_VMID_MAX=…")
    elif free < size * MIN_FREE_VMID_SHARE:
        yield _CHECK.warn("vmid range", text, "PROXMOX_VMID_MAX=…")
    else:
        yield _CHECK.ok("vmid range", text)
