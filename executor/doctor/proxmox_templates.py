"""Checks the templates of VMs and of containers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from executor.doctor.checks import Area, CheckResult, ResultFactory
from executor.doctor.proxmox_context import ProxmoxContext
from executor.placement import templates
from executor.proxmox.rows import VmRow, as_text, with_configuration
from executor.proxmox.template_needs import devices_for_root
from executor.shared.marker import markers_in

_RESULT = ResultFactory(Area.PROXMOX)
_DRIVE = re.compile(r"(ide|sata|scsi)[0-9]+")


def check_templates(context: ProxmoxContext) -> Iterator[CheckResult]:
    vmid_by_image = context.settings.proxmox_templates
    if not vmid_by_image and not context.settings.proxmox_any_template:
        hint = "PROXMOX_TEMPLATES=debian-12=9000,… (or PROXMOX_ANY_TEMPLATE=true)"
        yield _RESULT.warn("templates", "PROXMOX_TEMPLATES is empty, so a service can use no template", hint)
        return
    if not vmid_by_image:
        yield _check_templates_in_proxmox(context)
        return
    row_by_vmid, config_by_image = {row.vmid: row for row in context.guests}, dict(context.template_configs)
    results: list[CheckResult] = []
    for image, vmid in vmid_by_image.items():
        results += _check_template(image, vmid, row_by_vmid.get(vmid), config_by_image.get(image))
    yield from results
    if not results:
        yield _RESULT.ok("templates", ", ".join(f"{image} is VM {vmid}" for image, vmid in vmid_by_image.items()))


def _check_templates_in_proxmox(context: ProxmoxContext) -> CheckResult:
    """Check that Proxmox has templates. If PROXMOX_TEMPLATES is empty, a job finds its template by name or tag."""
    rows = context.reader.with_facts([row for row in context.guests if row.kind == "qemu"])
    names = sorted(row.name for row in rows if row.is_template)
    if not names:
        return _RESULT.warn(
            "templates", "PROXMOX_TEMPLATES is empty, and Proxmox lists no template", "qm template <vmid>"
        )
    text = f"PROXMOX_TEMPLATES is empty, so jobs find these templates by name or tag: {', '.join(names)}"
    return _RESULT.ok("templates", text)


def check_os_templates(context: ProxmoxContext) -> Iterator[CheckResult]:
    """Check that each container template of PROXMOX_OS_TEMPLATES exists on at least one node."""
    available_storages = [row for row in context.storages if row.is_available]
    problems = []
    for image, volume in sorted(context.settings.proxmox_os_templates.items()):
        storage = volume.partition(":")[0]
        nodes = [row.node for row in available_storages if row.name == storage]
        if not any(volume in context.reader.volumes(node, storage, "vztmpl") for node in nodes):
            problems.append(f"{image}: no node has {volume}, or the token may not see it")
    hint = "pveam download <storage> <template>, or grant the token Datastore.Audit on the storage"
    for problem in problems:
        yield _RESULT.fail("os templates", problem, hint)
    if context.settings.proxmox_os_templates and not problems:
        yield _RESULT.ok("os templates", ", ".join(sorted(context.settings.proxmox_os_templates)))


def _check_template(image: str, vmid: int, row: VmRow | None, config: dict[str, Any] | None) -> Iterator[CheckResult]:
    """Check that the guest with this VMID can be the template of the image."""
    if row is None or config is None:
        remedy = f"PROXMOX_TEMPLATES={image}=<vmid>, or grant the token VM.Audit on /vms/{vmid}"
        yield _RESULT.fail("templates", f"{image}: VM {vmid} does not exist, or the token lacks VM.Audit on it", remedy)
        return
    row = with_configuration(row, config)
    if row.kind != "qemu" or not row.is_template:
        remedy = f"PROXMOX_TEMPLATES={image}=<vmid>, or on {row.node}: qm template {vmid}"
        yield _RESULT.fail("templates", f"{image}: {row.kind} {vmid} ({row.name}) is not a VM template", remedy)
        return
    markers = markers_in(as_text(config.get("description")))
    if markers:
        remedy = f"remove the line with the marker from the notes of VM {vmid}"
        yield _RESULT.fail("templates", f"{image}: VM {vmid}: {templates.marked_template_text(markers)}", remedy)
    if devices := devices_for_root(config):
        text = f"{image}: VM {vmid} has devices of the host, so only root@pam may clone it: {', '.join(devices)}"
        yield _RESULT.fail("templates", text, "map the devices: Datacenter, Resource Mappings")
    if not any("cloudinit" in as_text(value) for key, value in config.items() if _DRIVE.fullmatch(key)):
        text = f"{image}: VM {vmid} has no cloud-init drive, so its VMs get no user, keys, password and addresses"
        yield _RESULT.warn("templates", text, f"on {row.node}: qm set {vmid} --ide2 <storage>:cloudinit")
