"""`smith templates`: lists the templates for VMs and containers, and the nodes on which each template can be used."""

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
from executor.proxmox.rows import StorageRow, VmRow, as_text, assume_unknown_storages_available
from executor.settings.settings import Settings
from executor.shared.marker import marker_values_in

#: The keys of a row that the table of templates shows, and the heading of each column.
COLUMNS = {
    "images": "IMAGE",
    "kind": "KIND",
    "vmid": "VMID",
    "name": "TEMPLATE",
    "node": "NODE",
    "storages": "STORAGE",
    "tags": "TAGS",
    "cloud_init": "CLOUD-INIT",
    "reachable_from": "USABLE ON",  # the nodes on which a VM or container can be created from the template
    "problem": "PROBLEM",
}
NO_TEMPLATE_TEXT = (
    "the Proxmox token sees no template, and PROXMOX_TEMPLATES and PROXMOX_OS_TEMPLATES are empty: create a template, "
    "or give the token VM.Audit on the templates"
)
UNKNOWN_STORAGES_TEXT = (
    "the column USABLE ON may lack nodes, because the storages of a template are unknown, or the Proxmox token does "
    "not see a storage that a clone needs: mend the errors in the column PROBLEM, or give the token Datastore.Audit on "
    "all storages"
)


@examples("smith templates list", "smith templates list --json")
def list_templates(as_json: AsJson = False) -> None:
    """List the templates in Proxmox and in the settings.

    A create job names an image. PROXMOX_TEMPLATES or PROXMOX_OS_TEMPLATES sets the template of an image. For any other
    image, PROXMOX_ANY_TEMPLATE allows the VM templates with the image's name or with the tag `image-NAME`. Each row has
    the names of the images for which a create job uses the template, the nodes on which the template can be used, and
    its problem, if any.
    """
    settings = open_settings()
    settings.require_proxmox_settings()
    reader = ProxmoxReader(ProxmoxConnection.from_settings(settings))
    rows = template_rows(reader, settings)
    if as_json:
        show_json(rows)
        return
    show_rows(rows, COLUMNS, if_empty=NO_TEMPLATE_TEXT)
    if not all(row["storages_are_known"] for row in rows):
        show_error(UNKNOWN_STORAGES_TEXT)


def template_rows(reader: ProxmoxReader, settings: Settings) -> list[dict[str, Any]]:
    """Return one row for each template in Proxmox or in the settings. A row has the keys that `--json` prints."""
    vm_templates = [vm for vm in _read_qemu_vms(reader) if vm.is_template]
    vm_templates.sort(key=lambda vm_template: vm_template.vmid)
    # Some online nodes send no status of their storages. Such storages count as available.
    storages = assume_unknown_storages_available(reader.storages(), reader.nodes())
    names_by_vmid = image_names_by_vmid(vm_templates, settings)
    rows = []
    for vm_template in vm_templates:
        row = _vm_template_row(vm_template, reader, settings, storages)
        rows.append(row | {"images": names_by_vmid.get(vm_template.vmid, [])})
    existing_vmids = {vm_template.vmid for vm_template in vm_templates}
    for name, vmid in sorted(settings.proxmox_templates.items()):
        if vmid not in existing_vmids:
            rows.append(_missing_template_row(name, vmid))
    for name, volume in sorted(settings.proxmox_os_templates.items()):
        rows.append(_container_template_row(name, volume, reader, storages))
    return rows


def _read_qemu_vms(reader: ProxmoxReader) -> list[VmRow]:
    """Return the QEMU VMs.

    If Proxmox's list lacks the name, cores and memory of a VM, they are read from the VM's configuration. A VM whose
    configuration cannot be read is left out.
    """
    rows: list[VmRow] = []
    for row in reader.vms():
        if row.kind != GuestKind.QEMU:
            continue
        try:
            rows += reader.add_missing_facts([row])
        except JobError:
            continue  # the VM was removed or moved, or its node does not answer
    return rows


def image_names_by_vmid(vm_templates: list[VmRow], settings: Settings) -> dict[int, list[str]]:
    """Return, for each template's VMID, the names of the images for which a create job uses the template."""
    tags = [tag for vm_template in vm_templates for tag in vm_template.tags]
    # A template with the tag TAG_PREFIX + NAME is a template of the image NAME.
    names_in_tags = [tag.removeprefix(templates.TAG_PREFIX) for tag in tags if tag.startswith(templates.TAG_PREFIX)]
    template_names = [vm_template.name for vm_template in vm_templates]
    image_names = {*settings.proxmox_templates, *template_names, *names_in_tags}
    names_by_vmid: dict[int, list[str]] = {}
    for image_name in sorted(image_names):
        try:
            selected_templates = templates.find_templates(
                image_name,
                settings.proxmox_templates,
                vm_templates,
                # An unconfigured template is a template that PROXMOX_TEMPLATES does not contain.
                are_unconfigured_templates_allowed=settings.proxmox_any_template,
            )
        except JobError:
            continue  # No template can be used for this name, or one node has two templates for it.
        for vm_template in selected_templates:
            names_by_vmid.setdefault(vm_template.vmid, []).append(image_name)
    return names_by_vmid


def _vm_template_row(
    vm_template: VmRow, reader: ProxmoxReader, settings: Settings, storages: list[StorageRow]
) -> dict[str, Any]:
    """Return the row of a VM template. `vm_template` is the template's entry in Proxmox's list of VMs."""
    config, problem = _read_config(vm_template, reader)
    if not problem and (markers := marker_values_in(as_text(config.get("description")))):
        problem = templates.why_template_with_marker_cannot_be_cloned(markers)
    template = templates.parse_template(vm_template, config)
    # '': the clone will be on the storages of its template. Only a full clone can be on PROXMOX_STORAGE instead.
    target_storage = settings.proxmox_storage if settings.proxmox_full_clones else ""
    possible_nodes = templates.nodes_for_clone(template, storages, target_storage or "")
    return {
        "kind": GuestKind.QEMU,
        "vmid": vm_template.vmid,
        "name": vm_template.name,
        "node": vm_template.node,
        "storages": sorted(template.storages),
        # False if the storages that the clone needs are unknown, or if the Proxmox token does not see one of them. Then
        # a clone may be possible on more nodes.
        "storages_are_known": possible_nodes.is_complete,
        "tags": list(vm_template.tags),
        "cloud_init": template.has_cloud_init if config else None,  # None: the configuration cannot be read
        "reachable_from": sorted(possible_nodes.nodes),
        "problem": problem,
    }


def _read_config(vm_template: VmRow, reader: ProxmoxReader) -> tuple[dict[str, Any], str]:
    """Return the template's configuration and '', or {} and the reason why the configuration cannot be read.

    The error is not raised, so that the other templates are listed when the node of one template does not answer.
    """
    try:
        return reader.vm_config(vm_template.node, vm_template.vmid), ""
    except JobError as error:
        return {}, str(error)


def _container_template_row(
    name: str, volume: str, reader: ProxmoxReader, storages: list[StorageRow]
) -> dict[str, Any]:
    """Return the row of a container template. Each node with the template's storage is asked whether it has the volume.

    `name` and `volume` are the key and the value of an entry of PROXMOX_OS_TEMPLATES, for example `debian-13` and
    `local:vztmpl/debian-13.tar.zst`.
    """
    storage = volume.partition(":")[0]
    nodes: list[str] = []
    problems: list[str] = []
    for node in sorted(row.node for row in storages if row.name == storage and row.is_available):
        try:
            if volume in reader.volumes(node, storage, content="vztmpl"):
                nodes.append(node)
        except JobError as error:
            problems.append(f"{node}: {error}")
    if not nodes and not problems:
        problems.append(
            "PROXMOX_OS_TEMPLATES names this volume, but no node has it, or the token lacks Datastore.Audit on the "
            "storage"
        )
    return {
        "images": [name],
        "kind": GuestKind.LXC,
        "vmid": None,
        "name": volume,
        "node": "",
        "storages": [storage],
        "tags": [],
        "storages_are_known": True,
        "cloud_init": None,
        "reachable_from": nodes,
        "problem": "; ".join(problems),
    }


def _missing_template_row(name: str, vmid: int) -> dict[str, Any]:
    """Return the row of an entry of PROXMOX_TEMPLATES for which Proxmox lists no template with this VMID."""
    return {
        "images": [name],
        "vmid": vmid,
        "kind": GuestKind.QEMU,
        "name": "",
        "node": "",
        "storages": [],
        "tags": [],
        "cloud_init": None,
        "reachable_from": [],
        "storages_are_known": True,  # so that UNKNOWN_STORAGES_TEXT is not shown because of this row
        "problem": "PROXMOX_TEMPLATES names this VMID, but the token sees no template with this VMID",
    }
