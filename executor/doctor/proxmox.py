"""Checks Proxmox: the API, the quorum and the free VMIDs; and runs the other checks of Proxmox."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from executor.doctor.checks import Area, CheckResult, ResultFactory
from executor.doctor.deleted_vms import check_deleted_vms
from executor.doctor.proxmox_context import ProxmoxContext
from executor.doctor.proxmox_places import check_bridges, check_nodes, check_pool, check_storages
from executor.doctor.proxmox_privileges import check_privileges, check_tags
from executor.doctor.proxmox_templates import check_os_templates, check_templates
from executor.errors import JobError
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.connection import ProxmoxConnection
from executor.settings.settings import Settings
from executor.shared.error_codes import ErrorCode

_RESULT = ResultFactory(Area.PROXMOX)
#: The major versions of Proxmox VE with which this release is tested.
TESTED_MAJOR_VERSIONS = ("8", "9")
#: The check warns when a smaller share of the VMID range than this is free.
MIN_FREE_VMID_SHARE = 0.05


def check_proxmox(settings: Settings) -> Iterator[CheckResult]:
    """Check Proxmox. If the first request fails, no other check runs.

    If a later request fails, only the check that sent this request fails. The other checks still run.
    """
    context = ProxmoxContext(settings, ProxmoxReader(ProxmoxConnection.from_settings(settings)))
    try:
        version = context.reader.version()
    except JobError as error:
        yield _RESULT.fail("reachable", str(error), *_connection_hints(error, settings))
        return
    yield from _check_connection(version, settings)
    for name, check in (
        ("quorum", _check_quorum),
        ("privileges", check_privileges),
        ("nodes", check_nodes),
        ("templates", check_templates),
        ("os templates", check_os_templates),
        ("storage", check_storages),
        ("bridge", check_bridges),
        ("pool", check_pool),
        ("vmid range", _check_vmid_range),
        ("tags", check_tags),
        ("deleted vms", check_deleted_vms),
    ):
        yield from _run_check(name, check, context)


def _run_check(
    name: str, check: Callable[[ProxmoxContext], Iterator[CheckResult]], context: ProxmoxContext
) -> Iterator[CheckResult]:
    """Run one check. If Proxmox returns an error, the result is a failed check."""
    try:
        yield from check(context)
    except JobError as error:
        yield _RESULT.fail(name, str(error))


def _connection_hints(error: JobError, settings: Settings) -> tuple[str, ...]:
    if error.code is ErrorCode.PVE_TLS:
        return ("PROXMOX_CA_BUNDLE=/path/to/pve-root-ca.pem (on a node: /etc/pve/pve-root-ca.pem)",)
    if error.code is ErrorCode.PVE_AUTH:
        token = f"the token {settings.proxmox_user}!{settings.proxmox_token_id}"
        credential = token if settings.proxmox_token_id else "the password"
        return (f"check that {credential} is right and not expired",)
    if error.code in (ErrorCode.PVE_UNREACHABLE, ErrorCode.PVE_TIMEOUT):
        address = f"PROXMOX_HOST={settings.proxmox_host} and PROXMOX_PORT={settings.proxmox_port}"
        return (f"check {address}; pveproxy must run there, and a firewall must allow the connection",)
    return ()


def _check_connection(version: str, settings: Settings) -> Iterator[CheckResult]:
    yield _RESULT.ok("reachable", f"{settings.proxmox_host}:{settings.proxmox_port}")
    if settings.proxmox_validate_certs:
        yield _RESULT.ok("tls", "verified")
    else:
        yield _RESULT.warn("tls", "the certificate is not verified", "PROXMOX_VALIDATE_CERTS=true")
    if version.partition(".")[0] in TESTED_MAJOR_VERSIONS:
        yield _RESULT.ok("version", f"Proxmox VE {version}")
    else:
        tested = " and ".join(TESTED_MAJOR_VERSIONS)
        text = f"Proxmox VE {version or 'of unknown version'}; Agent Smith is tested with the versions {tested}"
        yield _RESULT.warn("version", text, "docs/support.md lists the tested versions")


def _check_quorum(context: ProxmoxContext) -> Iterator[CheckResult]:
    if context.reader.is_quorate():
        yield _RESULT.ok("quorum")
    else:
        yield _RESULT.fail("quorum", "the cluster has no quorum: no VM can be changed", "pvecm status")


def _check_vmid_range(context: ProxmoxContext) -> Iterator[CheckResult]:
    lowest, highest = context.settings.proxmox_vmid_min, context.settings.proxmox_vmid_max
    vmid_count = highest - lowest + 1
    used_count = sum(lowest <= row.vmid <= highest for row in context.guests)
    free_count = vmid_count - used_count
    free_vmids_text = f"{free_count} of {vmid_count} VMIDs between {lowest} and {highest}"
    text = f"{free_vmids_text} are free, or belong to guests that the token may not see"
    if free_count <= 0:
        yield _RESULT.fail("vmid range", text, "PROXMOX_VMID_MAX=…")
    elif free_count < vmid_count * MIN_FREE_VMID_SHARE:
        yield _RESULT.warn("vmid range", text, "PROXMOX_VMID_MAX=…")
    else:
        yield _RESULT.ok("vmid range", text)
