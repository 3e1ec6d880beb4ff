"""`smith templates`: lists the templates for VMs and containers, and the nodes that can clone or use each template."""

from __future__ import annotations

from typing import Any

from executor.cli.arguments import AsJson
from executor.cli.context import open_settings
from executor.cli.help_text import examples
from executor.cli.output import show_error, show_json
from executor.cli.tables import show_rows
from executor.errors import JobError
from executor.model import GuestKind
from executor.placement import templates
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.connection import ProxmoxConnection
from executor.proxmox.rows import StorageRow, VmRow
from executor.settings.settings import Settings

COLUMNS = {
    "images": "IMAGE",
    "kind": "KIND",
    "vmid": "VMID",
    "name": "TEMPLATE",
    "node": "NODE",
    "storages": "STORAGE",
    "tags": "TAGS",
    "cloud_init": "CLOUD-INIT",
    "reachable_from": "REACHABLE FROM",
    "problem": "PROBLEM",
}


@examples("smith templates list", "smith templates list --json")
def list_templates(as_json: AsJson = False) -> None:
    """List the templates in Proxmox and in the settings.

    For each template, the image names that select it, the nodes that can use it, and its problem are shown.
    """
    settings = open_settings()
    settings.require_proxmox()
    reader = ProxmoxReader(ProxmoxConnection.from_settings(settings))
    found = rows(reader, settings)
    if as_json:
        show_json(found)
        return
    show_rows(found, COLUMNS, if_empty="the token sees no template, and PROXMOX_TEMPLATES names none")
    if any(not row["storages_are_known"] for row in found):
        show_error("the token does not see every storage (Datastore.Audit): more nodes may reach some templates")


def rows(reader: ProxmoxReader, settings: Settings) -> list[dict[str, Any]]:
    """Return one row for each template in Proxmox or in the settings. The keys of a row are those of `--json`."""
    listed = sorted((row for row in reader.vms() if row.is_template and row.kind == "qemu"), key=lambda row: row.vmid)
    storages = reader.storages()
    images = images_of(listed, settings)
    found = [_row(row, reader, settings, storages) | {"images": images.get(row.vmid, [])} for row in listed]
    vmids = {row.vmid for row in listed}
    missing = {name: vmid for name, vmid in settings.proxmox_templates.items() if vmid not in vmids}
    found += [_missing(name, vmid) for name, vmid in sorted(missing.items())]
    return found + [
        _os_template(name, volume, reader, storages) for name, volume in sorted(settings.proxmox_os_templates.items())
    ]


def images_of(listed: list[VmRow], settings: Settings) -> dict[int, list[str]]:
    """Return, for each template's VMID, the names of the images for which a create job uses the template."""
    tags = [
        tag.removeprefix(templates.TAG_PREFIX)
        for row in listed
        for tag in row.tags
        if tag.startswith(templates.TAG_PREFIX)
    ]
    names = {*settings.proxmox_templates, *(row.name for row in listed), *tags}
    found: dict[int, list[str]] = {}
    for name in sorted(names):
        try:
            selected = templates.candidates(name, settings.proxmox_templates, listed)
        except JobError:
            continue  # No template can be used for this name, or the name is ambiguous.
        for row in selected:
            found.setdefault(row.vmid, []).append(name)
    return found


def _row(row: VmRow, reader: ProxmoxReader, settings: Settings, storages: list[StorageRow]) -> dict[str, Any]:
    """Return the row of a VM template. `row` is its entry in Proxmox's list of VMs."""
    config, problem = _config(row, reader)
    template = templates.read(row, config)
    clones = templates.clone_nodes(template, storages, settings.proxmox_storage or "")
    return {
        "kind": GuestKind.QEMU,
        "vmid": row.vmid,
        "name": row.name,
        "node": row.node,
        "storages": sorted(template.storages),
        "storages_are_known": clones.is_complete,
        "tags": list(row.tags),
        "cloud_init": template.has_cloud_init if config else None,
        "reachable_from": sorted(clones.nodes),
        "problem": problem,
    }


def _config(row: VmRow, reader: ProxmoxReader) -> tuple[dict[str, Any], str]:
    """Return the template's configuration and '', or {} and the reason why the configuration cannot be read.

    The error is returned and not raised, so that the other templates are listed although one node does not answer.
    """
    try:
        return reader.vm_config(row.node, row.vmid), ""
    except JobError as error:
        return {}, str(error)


def _os_template(name: str, volume: str, reader: ProxmoxReader, storages: list[StorageRow]) -> dict[str, Any]:
    """Return the row of a container template. Each node with the template's storage is asked whether it has the volume.

    `name` and `volume` are an entry of PROXMOX_OS_TEMPLATES, for example `debian-13` and
    `local:vztmpl/debian-13.tar.zst`.
    """
    storage = volume.partition(":")[0]
    nodes, problems = [], []
    for node in sorted(row.node for row in storages if row.name == storage and row.is_available):
        try:
            nodes += [node] if volume in reader.volumes(node, storage, "vztmpl") else []
        except JobError as error:
            problems.append(f"{node}: {error}")
    found_nowhere = "it is in PROXMOX_OS_TEMPLATES, but no node has it, or the token does not see it (Datastore.Audit)"
    problem = "; ".join(problems) or ("" if nodes else found_nowhere)
    fields = {"kind": GuestKind.LXC, "vmid": None, "name": volume, "node": "", "storages": [storage], "tags": []}
    other_fields = {"storages_are_known": True, "cloud_init": None, "reachable_from": nodes, "problem": problem}
    return {"images": [name], **fields, **other_fields}


def _missing(name: str, vmid: int) -> dict[str, Any]:
    """Return the row of an entry of PROXMOX_TEMPLATES whose VMID is not a template that Proxmox lists for our token."""
    empty_fields: dict[str, Any] = {
        "kind": GuestKind.QEMU,
        "name": "",
        "node": "",
        "storages": [],
        "tags": [],
        "cloud_init": None,
        "reachable_from": [],
    }
    problem = "it is in PROXMOX_TEMPLATES, but is missing, is no template, or the token does not see it"
    return {"images": [name], "vmid": vmid, **empty_fields, "storages_are_known": True, "problem": problem}
