"""Finds the templates of an image, and the nodes on which a clone of a template can be created.

A service names an image. The new VM is a clone of one of the image's templates. The node of the template executes the
clone operation. The new VM can be created on another node only if every volume of the template is on a storage that
both nodes share. All functions are pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from executor.errors import JobError
from executor.proxmox.rows import StorageRow, VmRow
from executor.settings.offered import template_not_configured_error
from executor.shared.error_codes import ErrorCode

#: A template with the tag `image-<name>` is a template of the image `<name>`.
TAG_PREFIX = "image-"
#: Matches the keys of a VM's configuration whose values begin with the name of a volume.
DRIVE_KEY = re.compile(r"(?:scsi|virtio|sata|ide)\d+|efidisk0|tpmstate0")
#: Matches the volume of a cloud-init drive, for example `local:vm-100-cloudinit`.
CLOUD_INIT_VOLUME = re.compile(r"[:/](?:vm-\d+-)?cloudinit\b")
#: The maximum number of templates that a message names.
MAX_LISTED_NAMES = 10


@dataclass(frozen=True, kw_only=True)
class Template:
    """Facts about a template, from its row in Proxmox's list and from its configuration.

    The class is used for a migrating VM, too, because the same facts determine its possible target nodes.
    """

    vmid: int
    name: str
    node: str
    tags: tuple[str, ...] = ()
    storages: frozenset[str] = frozenset()  #: the names of the storages of all its volumes
    has_cloud_init: bool = False


@dataclass(frozen=True, kw_only=True)
class NodesForClone:
    """The result of `nodes_for_clone`: the nodes on which a clone of a template can be created."""

    nodes: frozenset[str]
    #: False if it is unknown which storages the clone needs, or if the token cannot see one of the needed storages. A
    #: clone may then be possible on further nodes.
    is_complete: bool


def find_templates(
    image: str, vmid_by_image: Mapping[str, int], rows: Sequence[VmRow], *, are_unconfigured_templates_allowed: bool
) -> list[VmRow]:
    """Return the templates of an image, sorted by VMID.

    If `vmid_by_image` (PROXMOX_TEMPLATES) has the image, only the template with its VMID is returned.

    If `vmid_by_image` lacks the image, and `are_unconfigured_templates_allowed` (PROXMOX_ANY_TEMPLATE) is true, the
    templates with the name of the image are returned. If no template has this name, the templates with the tag of the
    image are returned. There may be one template on each node.

    Raises JobError NOT_FOUND when both settings exclude the image, when the image has no template, or when it has two
    templates on one node.
    """
    if image not in vmid_by_image and not are_unconfigured_templates_allowed:
        raise template_not_configured_error(image, vmid_by_image)
    templates = [row for row in rows if row.is_template and row.kind == "qemu"]
    if image in vmid_by_image:
        return _configured_template(image, vmid_by_image[image], templates)
    tag = f"{TAG_PREFIX}{image}".lower()
    templates_with_name = [row for row in templates if row.name == image]
    templates_of_image = templates_with_name or [row for row in templates if tag in row.tags]
    if not templates_of_image:
        existing_names = _existing_names_text(vmid_by_image, templates)
        text = f"no template is called {image} or has the tag {tag}: {existing_names}"
        raise JobError(ErrorCode.NOT_FOUND, f"no template is called {image}", operator_detail=text)
    nodes = {row.node for row in templates_of_image}
    if len(nodes) < len(templates_of_image):
        template_texts = ", ".join(f"{row.vmid} on {row.node}" for row in templates_of_image[:MAX_LISTED_NAMES])
        text = f"more than one template on a node matches {image}: {template_texts}; set one in PROXMOX_TEMPLATES"
        raise JobError(ErrorCode.NOT_FOUND, f"more than one template matches {image}", operator_detail=text)
    return sorted(templates_of_image, key=lambda row: row.vmid)


def incomplete_rows_of_possible_templates(
    image: str, vmid_by_image: Mapping[str, int], rows: Sequence[VmRow]
) -> list[VmRow]:
    """Return the incomplete rows whose VMs may be templates of an image. The caller reads these VMs' configurations.

    A VM's row is incomplete if the VM's node sends no statistics to the cluster. The row then lacks the name and status
    of the VM, but has all its tags. The first condition that is true determines the result:

    - PROXMOX_TEMPLATES has a VMID for the image: the incomplete row with this VMID.
    - A complete row is a template with the image's name: no row.
    - Incomplete rows have the image's tag: only these rows.
    - Otherwise: all incomplete rows.
    """
    incomplete_rows = [row for row in rows if not row.has_statistics and row.kind == "qemu"]
    if image in vmid_by_image:
        return [row for row in incomplete_rows if row.vmid == vmid_by_image[image]]
    if any(row.is_template and row.name == image for row in rows):
        return []
    tag = f"{TAG_PREFIX}{image}".lower()
    return [row for row in incomplete_rows if tag in row.tags] or incomplete_rows


def _configured_template(image: str, vmid: int, templates: Sequence[VmRow]) -> list[VmRow]:
    """Return a list with the template that has this VMID. Raises JobError NOT_FOUND when it does not exist."""
    templates_with_vmid = [row for row in templates if row.vmid == vmid]
    if not templates_with_vmid:
        problem = "does not exist, is not a template, or is not visible to the token"
        text = f"template {vmid}, set in PROXMOX_TEMPLATES for {image}, {problem}"
        raise JobError(ErrorCode.NOT_FOUND, f"the template of the image {image} does not exist", operator_detail=text)
    return templates_with_vmid


def _existing_names_text(vmid_by_image: Mapping[str, int], templates: Sequence[VmRow]) -> str:
    """Return a text that names the images in PROXMOX_TEMPLATES and the templates in Proxmox."""
    image_names = ", ".join(sorted(vmid_by_image)[:MAX_LISTED_NAMES])
    template_names = ", ".join(sorted({row.name for row in templates})[:MAX_LISTED_NAMES])
    settings_text = f"PROXMOX_TEMPLATES has {image_names or 'no images'}"
    templates_text = f"the templates {template_names}" if template_names else "no templates that the token may see"
    return f"{settings_text}; Proxmox has {templates_text}"


def parse_template(row: VmRow, config: Mapping[str, Any]) -> Template:
    """Return the facts about a template or VM from its row in Proxmox's list and from its configuration."""
    drives = [str(value) for key, value in config.items() if DRIVE_KEY.fullmatch(key)]
    volumes = [drive.split(",")[0] for drive in drives]
    return Template(
        vmid=row.vmid,
        name=row.name,
        node=row.node,
        tags=row.tags,
        storages=frozenset(volume.partition(":")[0] for volume in volumes if ":" in volume),
        has_cloud_init=any(CLOUD_INIT_VOLUME.search(volume) for volume in volumes),
    )


def vm_facts_without_cloud_init_drive(row: VmRow, config: Mapping[str, Any]) -> Template:
    """Return the facts about a VM; its cloud-init drive is ignored.

    For a migration, the cloud-init drive needs no shared storage: Proxmox creates this drive again on the target node.
    """
    config_without_cloud_init = {key: value for key, value in config.items() if not _is_cloud_init(value)}
    return parse_template(row, config_without_cloud_init)


def _is_cloud_init(config_value: Any) -> bool:
    volume = str(config_value).partition(",")[0]
    return CLOUD_INIT_VOLUME.search(volume) is not None


def nodes_for_clone(template: Template, storage_rows: Sequence[StorageRow], target_storage: str = "") -> NodesForClone:
    """Return the nodes on which a clone of the template can be created.

    The disks of the clone will be on `target_storage`, or on the storages of the template when `target_storage` is
    empty. For a migration, `template` is the VM, and the result has the nodes with access to the disks of the VM.
    """
    needed_storages = template.storages | ({target_storage} if target_storage else set())
    rows = [row for row in storage_rows if row.name in needed_storages]
    visible_storages = {row.name for row in rows}
    shared_storages = {row.name for row in rows if row.is_shared}
    is_complete = bool(needed_storages) and needed_storages <= visible_storages
    are_all_shared = bool(needed_storages) and needed_storages <= shared_storages
    if not are_all_shared:
        return NodesForClone(nodes=frozenset({template.node}), is_complete=is_complete)
    nodes_by_storage = {
        name: {row.node for row in rows if row.name == name and row.is_available} for name in needed_storages
    }
    nodes_with_all_storages = set.intersection(*nodes_by_storage.values())
    return NodesForClone(nodes=frozenset({template.node} | nodes_with_all_storages), is_complete=is_complete)


def why_template_with_marker_cannot_be_cloned(markers: Sequence[str]) -> str:
    """Return why a template must not be cloned. `markers` are the service ids in the notes of the template.

    Each clone would have these ids in its notes, too.
    """
    lines = " and ".join(f"smith-uid={marker}" for marker in markers)
    remedy = "remove each `smith-uid` line from the notes of the template"
    return f"its notes have the marker of another service ({lines}): {remedy}"


def template_vmid_by_node(
    templates: Sequence[Template], nodes_for_clone_by_vmid: Mapping[int, NodesForClone]
) -> dict[str, int]:
    """Return for each node the VMID of the template to clone. A node on which no clone can be created is left out.

    The template to clone is the template on the node itself. If the node has none, it is the first template of which a
    clone can be created on the node. The keys of `nodes_for_clone_by_vmid` are the VMIDs of the templates.
    """
    vmid_by_node: dict[str, int] = {}
    for template in templates:
        for node in nodes_for_clone_by_vmid[template.vmid].nodes:
            vmid_by_node.setdefault(node, template.vmid)
    for template in templates:
        vmid_by_node[template.node] = template.vmid
    return vmid_by_node


def choose_template_vmid(
    node: str, image: str, templates: Sequence[Template], nodes_for_clone_by_vmid: Mapping[int, NodesForClone]
) -> int:
    """Return the VMID of the template to clone for a VM on this node.

    Raises JobError NOT_FOUND when no clone of a template of the image can be created on the node.
    """
    vmid = template_vmid_by_node(templates, nodes_for_clone_by_vmid).get(node)
    if vmid is not None:
        return vmid
    for template in templates:
        if not nodes_for_clone_by_vmid[template.vmid].is_complete:
            return template.vmid  # only an attempt can show whether a clone is possible
    template_texts = ", ".join(_template_text(template) for template in templates)
    # A template needs the storages of its volumes. Its clone needs these or the configured target storage.
    storage_problem = f"each template or its clone needs a storage that is not shared or not available on {node}"
    problem = f"{storage_problem} (templates: {template_texts})"
    remedy = f"use shared storage, or create a template of this image on {node}"
    text = f"no clone of {image} can be created on {node}: {problem}; {remedy}"
    raise JobError(ErrorCode.NOT_FOUND, f"no clone of {image} can be created", operator_detail=text)


def _template_text(template: Template) -> str:
    return f"{template.vmid} on {template.node} ({', '.join(sorted(template.storages))})"
