# SPDX-License-Identifier: Apache-2.0
"""Finds out why Proxmox cannot create a guest from the requested template, ISO image or OS template.

`REQUEST_ERRORS` are the exceptions of a failed request to Proxmox.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .client import REQUEST_ERRORS, error_text
from .identity import kind_of
from .node_limits import NO_SUCH_STORAGE
from .request_values import is_yes
from .volumes import VOLUME_KEY

if TYPE_CHECKING:
    from .cluster import Cluster

#: The facts of a guest or a template by their names, such as `node`, `lock` and `config`.
Facts = dict[str, Any]


def template_problem(cluster: Cluster, template: Facts, vm: dict[str, Any]) -> str:
    """Return why the template cannot be cloned to the requested node now; '' if it can. `vm` describes the new VM."""
    if template.get("lock"):
        return f"VM_LOCKED: the template {template['vmid']} is locked ({template['lock']})"
    is_linked = not is_yes(vm.get("full_clone", True))
    # A guest has Proxmox's feature `clone` if a linked clone of it is possible.
    if is_linked and not cluster.has_feature(template["node"], template["vmid"], "clone"):
        storage_names = ", ".join(sorted(_disk_storages(template)))
        return (
            f"INVALID_REQUEST: property full_clone: a disk of the template allows no linked clone (on {storage_names})"
        )
    node = str(vm.get("node") or template["node"])
    if node == template["node"]:
        return ""
    # Proxmox lists only the storages on which the user or token of the request has a privilege. Other storages are not
    # checked.
    row_by_storage, storages = cluster.storage_rows(template["node"]), _storages_of_clone(template, vm)
    local_storages = sorted(
        name for name in storages if name in row_by_storage and not is_yes(row_by_storage[name].get("shared", 0))
    )
    if not local_storages:
        return ""
    reason = "a clone on a node other than that of its template needs shared storages"
    names_text = f"the template is on {template['node']}; not shared: {', '.join(local_storages)}"
    return f"INVALID_REQUEST: property node: {reason} ({names_text})"


def _disk_storages(template: Facts) -> set[str]:
    """Return the storages of the template's disks, but not of its CD-ROMs and its cloud-init drive."""
    return {str(disk.get("storage") or "") for disk in template["disks"].values()} - {""}


def _storages_of_clone(template: Facts, vm: dict[str, Any]) -> set[str]:
    """Return the storages that a clone on another node needs.

    A clone needs the storages of all volumes of the template, including CD-ROMs and the cloud-init drive. A full clone
    also needs the requested storage.
    """
    drives = [str(value).partition(",")[0] for key, value in template["config"].items() if VOLUME_KEY.match(key)]
    template_storages = {drive.partition(":")[0] for drive in drives if ":" in drive}
    requested_storage = str(vm.get("storage") or "") if is_yes(vm.get("full_clone", True)) else ""
    return template_storages | ({requested_storage} if requested_storage else set())


def image_problem(cluster: Cluster, vm: dict[str, Any]) -> str:
    """Return a problem if the requested ISO image or OS template does not exist on its storage; '' if it exists.

    Raises one of REQUEST_ERRORS if the storage is not usable now, or if the user or token of the request
    may not read the storage.
    """
    member, content = ("os_template", "vztmpl") if kind_of(vm) == "lxc" else ("iso", "iso")
    volume = str(vm.get(member) or "")
    if not volume:
        return ""
    try:
        rows = cluster.api.nodes(vm["node"]).storage(volume.partition(":")[0]).content.get(content=content)
    except REQUEST_ERRORS as exc:
        if not NO_SUCH_STORAGE.search(error_text(exc)):
            raise
        rows = []
    if volume in {str(row.get("volid")) for row in rows}:
        return ""
    return f"NOT_FOUND: property {member}: the volume does not exist ({volume} on {vm['node']})"
