"""Finds the templates of an image, and the nodes on which a clone of a template can be created.

All functions are pure. The clone runs on the node of the template. The new VM can be created on another node only if
every volume of the template is on a storage that both nodes share.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from executor.errors import ErrorCode, JobError
from executor.proxmox.rows import StorageRow, VmRow

#: A template with the tag `image-<name>` is a template of the image `<name>`.
TAG_PREFIX = "image-"
#: Matches the keys of a VM's configuration whose values name a volume.
DRIVE = re.compile(r"(?:scsi|virtio|sata|ide)\d+|efidisk0|tpmstate0")
#: Matches the name of the volume of a cloud-init drive.
CLOUD_INIT = re.compile(r"[:/](?:vm-\d+-)?cloudinit\b")
#: The maximum number of templates that a message names.
MAX_LISTED = 10


@dataclass(frozen=True, kw_only=True)
class Template:
    """Facts about a template, from its entry in Proxmox's list and from its configuration."""

    vmid: int
    name: str
    node: str
    tags: tuple[str, ...] = ()
    storages: frozenset[str] = frozenset()  #: the names of the storages of all its volumes
    has_cloud_init: bool = False


@dataclass(frozen=True, kw_only=True)
class CloneNodes:
    """The nodes on which a clone of a template can be created."""

    nodes: frozenset[str]
    #: False if the token may not see the storages. Then clones may be possible on other nodes, too.
    is_complete: bool


def candidates(image: str, configured: Mapping[str, int], rows: Sequence[VmRow]) -> list[VmRow]:
    """Return the templates of an image, sorted by VMID.

    These are the template that `configured` (PROXMOX_TEMPLATES) names for the image; else the templates with the name
    of the image; else the templates with its tag. An image may have one template on each node, on local storage. Raises
    JobError NOT_FOUND when the image has no template, or has two templates on one node; its text names templates.
    """
    templates = [row for row in rows if row.is_template and row.kind == "qemu"]
    if image in configured:
        return _configured(image, configured[image], templates)
    tag = f"{TAG_PREFIX}{image}".lower()
    matching = [row for row in templates if row.name == image] or [row for row in templates if tag in row.tags]
    if not matching:
        raise JobError(
            ErrorCode.NOT_FOUND, f"no template is called {image} or has the tag {tag}: {_known(configured, rows)}"
        )
    if len({row.node for row in matching}) < len(matching):
        several = ", ".join(f"{row.vmid} on {row.node}" for row in matching[:MAX_LISTED])
        raise JobError(
            ErrorCode.NOT_FOUND, f"more than one template is {image}: {several}; set one in PROXMOX_TEMPLATES"
        )
    return sorted(matching, key=lambda row: row.vmid)


def _configured(image: str, vmid: int, templates: Sequence[VmRow]) -> list[VmRow]:
    matching = [row for row in templates if row.vmid == vmid]
    if not matching:
        why = "does not exist, is not a template, or is not visible to the token"
        raise JobError(ErrorCode.NOT_FOUND, f"template {vmid}, set in PROXMOX_TEMPLATES for {image}, {why}")
    return matching


def _known(configured: Mapping[str, int], rows: Sequence[VmRow]) -> str:
    """Return a text that names the images in PROXMOX_TEMPLATES and the templates in Proxmox."""
    names = sorted({row.name for row in rows if row.is_template and row.kind == "qemu"})
    settings = f"PROXMOX_TEMPLATES has {', '.join(sorted(configured)[:MAX_LISTED]) or 'none'}"
    return f"{settings}; Proxmox has {', '.join(names[:MAX_LISTED]) or 'none that is visible to the token'}"


def read(row: VmRow, config: Mapping[str, Any]) -> Template:
    """Return the facts of a template or VM from its entry in Proxmox's list and its configuration."""
    drives = [str(value) for key, value in config.items() if DRIVE.fullmatch(key)]
    volumes = [drive.split(",")[0] for drive in drives]
    return Template(
        vmid=row.vmid,
        name=row.name,
        node=row.node,
        tags=row.tags,
        storages=frozenset(volume.partition(":")[0] for volume in volumes if ":" in volume),
        has_cloud_init=any(CLOUD_INIT.search(volume) for volume in volumes),
    )


def without_cloud_init(row: VmRow, config: Mapping[str, Any]) -> Template:
    """Return the facts of a VM, but without its cloud-init drive.

    In a migration, Proxmox creates this drive again on the target node, so the drive need not be on a shared storage.
    """
    kept = {key: value for key, value in config.items() if not CLOUD_INIT.search(str(value).partition(",")[0])}
    return read(row, kept)


def clone_nodes(template: Template, storages: Sequence[StorageRow], storage: str = "") -> CloneNodes:
    """Return the nodes on which a clone of the template can be created.

    The disks of the clone are on `storage`, or on the storages of the template when `storage` is empty.
    """
    needed = template.storages | ({storage} if storage else set())
    rows = [row for row in storages if row.name in needed]
    shared = {row.name for row in rows if row.is_shared}
    is_complete = bool(needed) and needed <= {row.name for row in rows}
    if not needed or needed - shared:
        return CloneNodes(nodes=frozenset({template.node}), is_complete=is_complete)
    available = [{row.node for row in rows if row.name == name and row.is_available} for name in needed]
    return CloneNodes(nodes=frozenset({template.node} | set.intersection(*available)), is_complete=is_complete)


def template_by_node(templates: Sequence[Template], nodes_of: Mapping[int, CloneNodes]) -> dict[str, int]:
    """Return for each node the VMID of the template to clone.

    This is a template on the node itself, else the first template of which a clone can be created on the node. The keys
    of `nodes_of` are the VMIDs of the templates.
    """
    first: dict[str, int] = {}
    for template in templates:
        for node in nodes_of[template.vmid].nodes:
            first.setdefault(node, template.vmid)
    return first | {template.node: template.vmid for template in templates}


def template_for_node(node: str, image: str, templates: Sequence[Template], nodes_of: Mapping[int, CloneNodes]) -> int:
    """Return the VMID of the template to clone for a VM on this node.

    Raises JobError NOT_FOUND when no clone of a template of the image can be created on the node.
    """
    if (vmid := template_by_node(templates, nodes_of).get(node)) is not None:
        return vmid
    if unknown := next((each for each in templates if not nodes_of[each.vmid].is_complete), None):
        return unknown.vmid  # the token may not see the storages, so only the clone request can show the result
    where = ", ".join(f"{each.vmid} on {each.node} ({', '.join(sorted(each.storages))})" for each in templates)
    text = f"no clone of {image} can be created on {node}: template {where} has volumes on storage that is not shared"
    raise JobError(ErrorCode.NOT_FOUND, text)
