"""Step 5 of 7, what a create clones: an image's name becomes a template, and says from which nodes it can be had.

Pure functions over what Proxmox lists. Proxmox clones on the template's own node; the new VM may land on another one
only when every volume of the template is on storage that both nodes share.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from executor.errors import ErrorCode, JobError
from executor.proxmox.rows import StorageRow, VmRow

#: A template with this tag, and the image's name behind it, serves the image.
TAG_PREFIX = "image-"
DRIVE = re.compile(r"(?:scsi|virtio|sata|ide)\d+|efidisk0|tpmstate0")
CLOUD_INIT = re.compile(r"[:/](?:vm-\d+-)?cloudinit\b")
MAX_NAMED = 10


@dataclass(frozen=True, kw_only=True)
class Template:
    """A template with what its configuration says."""

    vmid: int
    name: str
    node: str
    tags: tuple[str, ...] = ()
    storages: frozenset[str] = frozenset()  #: of all its volumes
    has_cloud_init: bool = False


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Where a clone of a template may land."""

    nodes: frozenset[str]
    is_certain: bool  #: False: its storages are not shown to us, so there may be more


def candidates(image: str, configured: Mapping[str, int], rows: Sequence[VmRow]) -> list[VmRow]:
    """Return the templates that serve an image: the one of PROXMOX_TEMPLATES, else by name, else by tag.

    Several are returned when each is on a node of its own: the same image on local storages. Raises JobError NOT_FOUND
    saying what was found instead.
    """
    templates = [row for row in rows if row.is_template and row.kind == "qemu"]
    if image in configured:
        return _configured(image, configured[image], templates)
    tag = f"{TAG_PREFIX}{image}".lower()
    found = [row for row in templates if row.name == image] or [row for row in templates if tag in row.tags]
    if not found:
        raise JobError(
            ErrorCode.NOT_FOUND, f"no template is called {image} or tagged {tag}: {_known(configured, rows)}"
        )
    if len({row.node for row in found}) < len(found):
        several = ", ".join(f"{row.vmid} on {row.node}" for row in found[:MAX_NAMED])
        raise JobError(ErrorCode.NOT_FOUND, f"more than one template is {image}: {several}; PROXMOX_TEMPLATES decides")
    return sorted(found, key=lambda row: row.vmid)


def _configured(image: str, vmid: int, templates: Sequence[VmRow]) -> list[VmRow]:
    found = [row for row in templates if row.vmid == vmid]
    if not found:
        why = "does not exist, is no template, or the token may not see it"
        raise JobError(ErrorCode.NOT_FOUND, f"template {vmid}, which PROXMOX_TEMPLATES names for {image}, {why}")
    return found


def _known(configured: Mapping[str, int], rows: Sequence[VmRow]) -> str:
    names = sorted({row.name for row in rows if row.is_template and row.kind == "qemu"})
    told = [f"PROXMOX_TEMPLATES has {', '.join(sorted(configured)[:MAX_NAMED]) or 'none'}"]
    return "; ".join([*told, f"Proxmox has {', '.join(names[:MAX_NAMED]) or 'none that the token may see'}"])


def read(row: VmRow, config: Mapping[str, Any]) -> Template:
    """Read a template's configuration."""
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
    """Read a VM's configuration, without its cloud-init drive: Proxmox makes that anew wherever the VM goes."""
    kept = {key: value for key, value in config.items() if not CLOUD_INIT.search(str(value).partition(",")[0])}
    return read(row, kept)


def reach(template: Template, storages: Sequence[StorageRow], storage: str = "") -> Reach:
    """Say where a clone may land, its disks on `storage`, or on the template's own when that is empty."""
    rows = [row for row in storages if row.name in (template.storages | ({storage} if storage else set()))]
    shared = {row.name for row in rows if row.is_shared}
    needed = template.storages | ({storage} if storage else set())
    is_certain = bool(needed) and needed <= {row.name for row in rows}
    if not needed or needed - shared:
        return Reach(nodes=frozenset({template.node}), is_certain=is_certain)
    places = [{row.node for row in rows if row.name == name and row.is_available} for name in needed]
    return Reach(nodes=frozenset({template.node}.union(set.intersection(*places))), is_certain=is_certain)


def serving(templates: Sequence[Template], reaches: Mapping[int, Reach]) -> dict[str, int]:
    """Return, by node, the template to clone for a VM there: the node's own, else the first that reaches it."""
    found: dict[str, int] = {}
    for template in templates:
        for node in reaches[template.vmid].nodes:
            found.setdefault(node, template.vmid)
    return found | {template.node: template.vmid for template in templates}


def for_node(node: str, image: str, templates: Sequence[Template], reaches: Mapping[int, Reach]) -> int:
    """Return the template for a VM on a node that is wanted. Raises JobError NOT_FOUND when none can be had there."""
    if (vmid := serving(templates, reaches).get(node)) is not None:
        return vmid
    if unsure := next((each for each in templates if not reaches[each.vmid].is_certain), None):
        return unsure.vmid  # Proxmox knows; we are not shown
    where = ", ".join(f"{each.vmid} on {each.node} ({', '.join(sorted(each.storages))})" for each in templates)
    raise JobError(
        ErrorCode.NOT_FOUND,
        f"{node} cannot be reached by a clone of {image}: template {where} is not all on storage that both share",
    )
