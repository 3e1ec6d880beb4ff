"""Checks the templates of VMs and of containers.

An image is the name by which services choose a template.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from executor.doctor.checks import Area, CheckResult, ResultFactory, command_line, quoted_setting_line
from executor.doctor.proxmox_context import ProxmoxContext
from executor.placement import templates
from executor.proxmox.rows import VmRow, as_text, fill_in_vm_row
from executor.proxmox.template_needs import root_only_devices
from executor.shared.guest_disks import is_cloud_init
from executor.shared.marker import marker_values_in

_RESULT_FACTORY = ResultFactory(Area.PROXMOX)
#: The maximum number of templates that a message names.
MAX_NAMED_TEMPLATES = 10
#: The keys of a VM's configuration under which the remedy may add a cloud-init drive, in the order of preference.
CLOUD_INIT_KEYS = ("ide2", "ide0", "sata5", "scsi30")
_DRIVE_KEY = re.compile(r"(ide|sata|scsi)[0-9]+")


def check_templates(context: ProxmoxContext) -> Iterator[CheckResult]:
    """Check that each template in PROXMOX_TEMPLATES can be cloned.

    If the setting is empty and jobs may use any template, check instead that Proxmox has templates.
    """
    vmid_by_image = context.settings.proxmox_templates
    if not vmid_by_image and not context.settings.proxmox_any_template:
        remedy = "PROXMOX_TEMPLATES=debian-12=9000,… (or PROXMOX_ANY_TEMPLATE=true)"
        yield _RESULT_FACTORY.warn("templates", "PROXMOX_TEMPLATES is empty, so a service can use no template", remedy)
        return
    if not vmid_by_image:
        yield _check_templates_in_proxmox(context)
        return
    results = [result for image, vmid in vmid_by_image.items() for result in _check_template(context, image, vmid)]
    yield from results
    if not results:
        yield _RESULT_FACTORY.ok(
            "templates", ", ".join(f"{image} is VM {vmid}" for image, vmid in vmid_by_image.items())
        )


def _check_templates_in_proxmox(context: ProxmoxContext) -> CheckResult:
    """Check that Proxmox has templates. If PROXMOX_TEMPLATES is empty, a job finds its template by name or tag."""
    # Proxmox's list lacks the name of a VM if the node's daemon pvestatd has sent no statistics of the VM. Then the
    # name is read from the configuration.
    rows = context.reader.add_missing_facts([row for row in context.guests if row.kind == "qemu"])
    names = sorted(row.name for row in rows if row.is_template)
    if not names:
        return _RESULT_FACTORY.warn(
            "templates", "PROXMOX_TEMPLATES is empty, and Proxmox lists no template", "qm template <vmid>"
        )
    text = f"PROXMOX_TEMPLATES is empty, so jobs find these templates by name or tag: {', '.join(names)}"
    return _RESULT_FACTORY.ok("templates", text)


def check_os_templates(context: ProxmoxContext) -> Iterator[CheckResult]:
    """Check that each container template of PROXMOX_OS_TEMPLATES exists on at least one node."""
    volume_by_image = context.settings.proxmox_os_templates
    missing_volume_by_image = {
        image: volume for image, volume in sorted(volume_by_image.items()) if not _has_volume(context, volume)
    }
    for image, volume in missing_volume_by_image.items():
        text = f"{image}: no node has {volume}, or the token may not see it"
        yield _RESULT_FACTORY.fail("os templates", text, *_os_template_remedies(context, image, volume))
    if volume_by_image and not missing_volume_by_image:
        yield _RESULT_FACTORY.ok("os templates", ", ".join(sorted(volume_by_image)))


def _has_volume(context: ProxmoxContext, volume: str) -> bool:
    return volume in _os_template_volumes(context, volume.partition(":")[0])


def _os_template_volumes(context: ProxmoxContext, storage: str) -> frozenset[str]:
    """Return the container templates that the nodes have on this storage."""
    rows = [row for row in context.storages if row.is_available and row.name == storage]
    return frozenset().union(*(context.reader.volumes(row.node, storage, "vztmpl") for row in rows))


def _os_template_remedies(context: ProxmoxContext, image: str, volume: str) -> list[str]:
    storage, _, file = volume.partition(":")
    node = next((row.node for row in context.storages if row.name == storage), "<node>")
    remedies = [f"on {node}: {command_line('pveam', 'download', storage, file.partition('/')[2])}"]
    if existing_volumes := sorted(_os_template_volumes(context, storage)):
        remedies.insert(
            0,
            _setting_with_entry(
                "PROXMOX_OS_TEMPLATES", context.settings.proxmox_os_templates, image, existing_volumes[0]
            ),
        )
    return [*remedies, f"grant the token Datastore.Audit on /storage/{storage}"]


def _setting_with_entry(name: str, values: Mapping[str, object], image: str, value: object) -> str:
    """Return the line of a setting such as PROXMOX_TEMPLATES, in which the entry of one image has the new value."""
    return quoted_setting_line(name, ",".join(f"{key}={text}" for key, text in {**values, image: value}.items()))


def _check_template(context: ProxmoxContext, image: str, vmid: int) -> Iterator[CheckResult]:
    """Check that the guest with this VMID can be the template of the image."""
    row = next((row for row in context.guests if row.vmid == vmid), None)
    config = dict(context.template_configs).get(image)
    setting_remedy = _setting_with_entry("PROXMOX_TEMPLATES", context.settings.proxmox_templates, image, "<vmid>")
    if row is None or config is None:
        text = f"{image}: VM {vmid} does not exist, or the token lacks VM.Audit on the VM"
        text += _text_about_visible_templates(context)
        yield _RESULT_FACTORY.fail("templates", text, setting_remedy, f"grant the token VM.Audit on /vms/{vmid}")
        return
    row = fill_in_vm_row(row, config)  # adds what Proxmox's list may lack, such as the name
    if row.kind != "qemu" or not row.is_template:
        text = f"{image}: {row.kind} {vmid} ({row.name}) is not a VM template"
        convert_remedies = [f"on {row.node}: qm template {vmid}"] if row.kind == "qemu" else []
        yield _RESULT_FACTORY.fail("templates", text, *convert_remedies, setting_remedy)
        return
    yield from _check_configuration(image, row, config)


def _text_about_visible_templates(context: ProxmoxContext) -> str:
    names = [f"{row.vmid} ({row.name})" for row in context.guests if row.is_template and row.kind == "qemu"]
    return f"; the token can see the templates {', '.join(names[:MAX_NAMED_TEMPLATES])}" if names else ""


def _check_configuration(image: str, row: VmRow, config: dict[str, Any]) -> Iterator[CheckResult]:
    """Check the notes, the devices and the cloud-init drive of a template."""
    notes = as_text(config.get("description"))
    if markers := marker_values_in(notes):
        text = f"{image}: VM {row.vmid}: {templates.why_template_with_marker_cannot_be_cloned(markers)}"
        notes_without_markers = "\n".join(line for line in notes.splitlines() if not marker_values_in(line))
        option = ("--description", notes_without_markers) if notes_without_markers else ("--delete", "notes")
        yield _RESULT_FACTORY.fail("templates", text, f"on {row.node}: {command_line('qm', 'set', row.vmid, *option)}")
    if devices := root_only_devices(config):
        text = f"{image}: VM {row.vmid} has devices of the host, so only root@pam may clone it: {', '.join(devices)}"
        yield _RESULT_FACTORY.fail(
            "templates",
            text,
            "create a resource mapping for each device (web interface: Datacenter > Resource Mappings)",
        )
    if not any(is_cloud_init(as_text(value)) for key, value in config.items() if _DRIVE_KEY.fullmatch(key)):
        text = f"{image}: VM {row.vmid} has no cloud-init drive, so its VMs get no user, keys, password or addresses"
        storage = min(templates.parse_template(row, config).storages, default="<storage>")
        # A key is free if the configuration lacks the key, or if its value is `none` (an empty CD drive).
        free_keys = [key for key in CLOUD_INIT_KEYS if as_text(config.get(key, "none")).startswith("none")]
        key = free_keys[0] if free_keys else CLOUD_INIT_KEYS[0]
        remedy = command_line("qm", "set", row.vmid, f"--{key}", f"{storage}:cloudinit")
        yield _RESULT_FACTORY.warn("templates", text, f"on {row.node}: {remedy}")
