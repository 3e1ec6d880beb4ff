# SPDX-License-Identifier: Apache-2.0
"""Finds requested CPUs, bridges, storages and CPU models that a node or its cluster cannot give to a guest.

Proxmox checks the requested values only after it has cloned the template, or when it starts the guest. So the action
plugins check them before the first change. Data about the node is read only if a request names a value that the guest
does not have yet. If the login (the Proxmox user or token) may not read such data, the check is skipped.

A problem is `CODE: property NAME: text (names and figures)`. NAME is a property of the job. The part in parentheses is
only for operators; tenants read the problem without it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from . import disks
from .bridges import bridge_problem
from .client import REQUEST_ERRORS, error_text, read_list_or_empty_if_forbidden
from .creation import is_created_without_template
from .identity import kind_of
from .request_values import is_yes

if TYPE_CHECKING:
    from .cluster import Cluster

#: The facts of a guest or a template, such as `config`, `disks` and `cores`. guest_facts.py lists all of them.
Facts = dict[str, Any]
#: The types of storages whose disks are files. On such a storage, a disk of the format qcow2 can have snapshots, a raw
#: disk cannot.
FILE_STORAGES = ("dir", "nfs", "cifs", "glusterfs")
#: The content type that a storage must have to store disks of guests, by the kind of guest.
DISK_CONTENT = {"qemu": "images", "lxc": "rootdir"}
#: Proxmox's error text about a storage that does not exist.
NO_SUCH_STORAGE = re.compile(r"storage '[^']*' does not exist")


class ContentType(NamedTuple):
    """A type of content that a storage must accept."""

    name: str  #: Proxmox's name of the type
    member: str  #: the property of the job that names the storage
    plural: str  #: the word for the content in an error text, such as `backups`


def request_problem(cluster: Cluster, node: str, facts: Facts, vm: dict[str, Any], *, is_new: bool) -> str:
    """Return why the node cannot give the guest the requested values; '' if it can, or if this is unknown.

    `vm` is the request (docs/actions.md). `facts` are the facts of the guest or, before it is created, of the template.
    `is_new` is true if the guest does not exist yet.
    """
    facts = {"config": {}, "disks": {}, "cores": 0, "sockets": 0, **facts}
    return next(filter(None, _problems(cluster, node, facts, vm, is_new)), "")


def _problems(cluster: Cluster, node: str, facts: Facts, vm: dict[str, Any], is_new: bool) -> Iterator[str]:
    if is_new and node not in {str(row.get("node")) for row in cluster.node_rows()}:
        yield f"NOT_FOUND: property node: the cluster has no such node ({node})"
    if kind_of(vm) == "qemu":
        vcpus = _requested_vcpus(facts, vm)
        if vcpus and (is_new or vcpus > facts["cores"] * facts["sockets"]):
            yield vcpus_problem(cluster, node, vcpus)
        yield _cpu_model_problem(cluster, node, facts, vm, is_new)
    # Only an increase of the number of cores is checked. A container without `cores` has no limit (`math.inf`).
    elif int(vm.get("cores") or 0) > (0 if is_new else facts["cores"] or math.inf):
        yield _container_cores_problem(cluster, node, int(vm["cores"]))
    yield bridge_problem(cluster, node, facts, vm, is_new)
    for storage in sorted(_requested_storages(facts, vm, is_new)):
        content = ContentType(DISK_CONTENT[kind_of(vm)], "storage", "disks of guests")
        yield _content_problem(cluster, node, storage, int(vm["vmid"]), content)
    yield _snippet_problem(cluster, node, facts, vm)


def vcpus_problem(cluster: Cluster, node: str, vcpus: int) -> str:
    """Return a problem if the node has fewer CPUs than `vcpus`; '' if not.

    Proxmox does not start a VM that has more vCPUs than its node has CPUs.
    """
    cpu_count = _cpu_count_of(cluster, node)
    if not cpu_count or vcpus <= cpu_count:
        return ""
    text = "a VM can have no more vCPUs than its node has CPUs"
    return f"CAPACITY: property cores: {text} ({vcpus} requested, {node} has {cpu_count})"


def _container_cores_problem(cluster: Cluster, node: str, cores: int) -> str:
    """Return a problem if the node has fewer CPUs than `cores`; '' if not.

    Proxmox would accept `cores`, but the container could not use more cores than the node has CPUs.
    """
    cpu_count = _cpu_count_of(cluster, node)
    if not cpu_count or cores <= cpu_count:
        return ""
    text = "a container can have no more cores than its node has CPUs"
    return f"CAPACITY: property cores: {text} ({cores} requested, {node} has {cpu_count})"


def _cpu_count_of(cluster: Cluster, node: str) -> int:
    """Return the number of the node's CPUs; 0 if the login may not read it."""
    return next((int(row.get("maxcpu") or 0) for row in cluster.node_rows() if row.get("node") == node), 0)


def backup_problem(cluster: Cluster, node: str, storage: str, vmid: int) -> str:
    """Return why Proxmox would refuse to write a backup to the storage; '' if it would not, or if this is unknown.

    Raises one of REQUEST_ERRORS if a request to Proxmox fails, for example because the node does not answer.
    """
    return _content_problem(cluster, node, storage, vmid, ContentType("backup", "backup_storage", "backups"))


def disk_format(cluster: Cluster, node: str, storage: str) -> str | None:
    """Return the format of a new disk: `qcow2` on a storage whose disks are files, because raw files have no snapshots.

    On every other storage, return None: the caller then requests no format, and Proxmox chooses the format.
    """
    row = cluster.storage_rows(node).get(storage, {})
    is_file_storage = row.get("plugintype") in FILE_STORAGES and "images" in str(row.get("content", "")).split(",")
    return "qcow2" if is_file_storage else None


def _requested_vcpus(facts: Facts, vm: dict[str, Any]) -> int:
    """Return the number of vCPUs that the guest will have; 0 if the request names neither cores nor sockets.

    If the request names cores but no sockets, the guest gets one socket.
    """
    cores, sockets = vm.get("cores"), vm.get("sockets")
    if not cores and not sockets:
        return 0
    return int(cores or facts["cores"] or 1) * int(sockets or (1 if cores else facts["sockets"]) or 1)


def _cpu_model_problem(cluster: Cluster, node: str, facts: Facts, vm: dict[str, Any], is_new: bool) -> str:
    """Return why Proxmox would refuse the CPU model. Custom models are not checked: not every login can see them."""
    model = str(vm.get("cpu_type") or "").partition(",")[0].removeprefix("cputype=")
    current_model = str(facts["config"].get("cpu") or "").partition(",")[0].removeprefix("cputype=")
    if not model or model.startswith("custom-") or (model == current_model and not is_new):
        return ""
    names = {
        str(row.get("name")) for row in read_list_or_empty_if_forbidden(cluster.api.nodes(node).capabilities.qemu.cpu)
    }
    if not names or model in names:
        return ""
    return f"INVALID_REQUEST: property cpu_type: Proxmox knows no such CPU model ({model})"


def _requested_storages(facts: Facts, vm: dict[str, Any], is_new: bool) -> set[str]:
    """Return the storages on which the requested change creates a disk, or to which it moves a disk."""
    # Each step is a call of the module proxmox_disk. Only the step that resizes a disk names no storage.
    steps = disks.disk_module_parameters(facts, vm) if kind_of(vm) == "qemu" else []
    storages = {str(step["storage"]) for step in steps if step["state"] != "resized"}
    is_disk_on_requested_storage = (
        kind_of(vm) == "lxc" or is_created_without_template(vm) or is_yes(vm.get("full_clone", True))
    )
    if is_new and is_disk_on_requested_storage:
        storages.add(str(vm.get("storage") or ""))
    return storages - {""}


def _snippet_problem(cluster: Cluster, node: str, facts: Facts, vm: dict[str, Any]) -> str:
    """Return why the storage of the requested snippet cannot contain snippets; '' if it can.

    A snippet that the guest already has is not checked. The existence of the snippet is not checked, because Proxmox
    lists snippets only for a login with Datastore.Allocate; Proxmox reads the snippet when the guest starts.
    """
    snippet = str((vm.get("cloud_init") or {}).get("vendor_snippet") or "")
    if not snippet or f"vendor={snippet}" in str(facts["config"].get("cicustom", "")).split(","):
        return ""
    content = ContentType("snippets", "cloud_init.vendor_snippet", "snippets")
    return _content_problem(cluster, node, snippet.partition(":")[0], int(vm["vmid"]), content)


def _content_problem(cluster: Cluster, node: str, storage: str, vmid: int, content: ContentType) -> str:
    """Return why the storage cannot have this content; '' if it can, or if this is unknown.

    Proxmox lists only the storages on which the login has a privilege. For a storage that is not listed, the error of a
    request shows whether the storage exists. Raises one of REQUEST_ERRORS if a request fails for another reason than a
    missing storage or privilege.
    """
    row = cluster.storage_rows(node).get(storage)
    if row is not None:
        is_usable = content.name in str(row.get("content", content.name)).split(",")
        problem = f"INVALID_REQUEST: property {content.member}: the storage accepts no {content.plural} ({storage})"
        return "" if is_usable else problem
    try:
        cluster.volume_ids(node, storage, vmid)
    except REQUEST_ERRORS as exc:
        if NO_SUCH_STORAGE.search(error_text(exc)):
            return f"NOT_FOUND: property {content.member}: the storage does not exist ({storage})"
        if getattr(exc, "status_code", 0) != 403:
            raise
    return ""
