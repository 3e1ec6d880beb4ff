# SPDX-License-Identifier: Apache-2.0
"""Removes volumes of a deleted guest that Proxmox could not remove, if the operator allows their removal.

Before Proxmox removes a volume, it does not check whether a guest uses the volume. So the action plugin removes a
volume only if all of these conditions are met: disks or snapshots of the deleted guest used the volume; the volume is
not a new volume with the same name; the volume's name contains the VMID of the deleted guest; no new guest has this
VMID; no other guest names the volume in its configuration or in a snapshot.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from typing import Any

from . import request, volumes
from .client import REQUEST_ERRORS, error_text
from .cluster import Cluster
from .proxmox_tasks import has_failed, is_running
from .vm_action import Refused, VmAction

#: The time between two polls of a Proxmox task that removes a volume.
POLL_S = 0.5
#: The exceptions after which a volume may still exist: `Refused`, the exception with which the action plugin fails,
#: and the exceptions of failed requests to Proxmox.
FAILURES: tuple[type[Exception], ...] = (Refused, *REQUEST_ERRORS)
#: The keys of a configuration whose values people write. Such a value may name a volume that the guest does not use.
TEXT_KEYS = ("description", "name", "hostname", "tags")

Row = dict[str, Any]


def volume_rows_of_guest(cluster: Cluster, node: str, vmid: int, used_volumes: Iterable[str]) -> dict[str, Row]:
    """Return the row of each volume in `used_volumes` that exists and that Proxmox assigns to the VMID.

    A row is an entry of Proxmox's list of a storage's volumes. The keys of the result are the volume ids.
    """
    used_volumes = set(used_volumes)
    rows = [row for storage in volumes.storages_of(used_volumes) for row in cluster.volume_rows(node, storage, vmid)]
    return {
        str(row["volid"]): row for row in rows if row["volid"] in used_volumes and int(row.get("vmid") or 0) == vmid
    }


def remove_volumes(plugin: VmAction, node: str, rows: dict[str, Row]) -> None:
    """Remove the volumes in `rows`, which the deleted guest used. The rows were read before the deletion.

    If a volume is not removed, the action plugin only warns, because the guest itself is already deleted.
    """
    try:
        usage_problems = _usage_problems_by_volume(plugin, rows)
    except FAILURES as exc:
        usage_problems = dict.fromkeys(rows, f"it is unknown whether another guest uses the volume: {error_text(exc)}")
    for volume, row in rows.items():
        try:
            problem = usage_problems.get(volume) or _new_owner_problem(plugin.cluster, node, volume, row)
            problem = problem or _remove(plugin, node, volume)
        except FAILURES as exc:
            problem = error_text(exc)
        if problem:
            plugin.warn(f"The volume {volume} was not removed: {problem}")


def _usage_problems_by_volume(plugin: VmAction, volumes_to_remove: Iterable[str]) -> dict[str, str]:
    """Return a problem for each volume to remove that another guest uses. The problem names that guest.

    The keys of the result are the volume ids. Two storages may show the same volumes, so volumes are compared by their
    names without the storage. Raises one of FAILURES if a configuration cannot be read.
    """
    cluster = plugin.cluster
    privileges_by_path = cluster.api.access.permissions.get(path="/vms")
    if not any(privileges.get("VM.Audit") for privileges in privileges_by_path.values()):
        raise Refused("the token lacks VM.Audit on /vms, so it does not see every guest")
    patterns = {volume: _pattern_of(volume) for volume in volumes_to_remove}
    usage_problems = {}
    for row in cluster.list_guests():
        # With 0 seconds, `require_time` raises Refused only if the deadline of the action plugin has passed.
        plugin.require_time(0, "reading the configurations of all guests")
        guest_text = f"{'container' if row['type'] == 'lxc' else 'VM'} {row['vmid']} on {row['node']}"
        text = f"{guest_text} has this volume in its configuration or a snapshot"
        # A Cluster object reads only guests of one kind: VMs or containers.
        cluster_of_kind = Cluster(cluster.api, str(row["type"]), cluster.user_or_token)
        for value in _configuration_values(cluster_of_kind, row):
            usage_problems.update({volume: text for volume, pattern in patterns.items() if pattern.search(value)})
    return usage_problems


def _pattern_of(volume: str) -> re.Pattern[str]:
    """Return a pattern that finds the volume's name in a volume id, a path or the id of a linked clone's volume."""
    name = re.split(r"[:/]", volume)[-1]
    return re.compile(rf"(?<![\w.-]){re.escape(name)}(?![\w.-])")


def _configuration_values(cluster: Cluster, row: Row) -> Iterator[str]:
    """Yield the values of a guest's configuration and of its snapshots."""
    node, vmid = str(row["node"]), int(row["vmid"])
    items = cluster.configuration_items(node, vmid)
    for snapshot in cluster.snapshots(node, vmid):
        items += cluster.guest(node, vmid).snapshot(snapshot["name"]).config.get().items()
    yield from (str(value) for key, value in items if key not in TEXT_KEYS)


def _new_owner_problem(cluster: Cluster, node: str, volume: str, row_before: Row) -> str:
    """Return why the volume may now belong to another guest; '' if it cannot.

    The volume may belong to another guest in three cases: a new guest has the VMID of the deleted guest; the volume was
    created after `row_before` was read; Proxmox no longer lists the volume for this VMID.
    """
    vmid = int(row_before["vmid"])
    row_now = volume_rows_of_guest(cluster, node, vmid, [volume]).get(volume)
    if row_now is None:
        return f"Proxmox no longer lists the volume as a volume of VM {vmid}"
    if row_now.get("ctime") != row_before.get("ctime"):
        return "the volume was created after the deletion of the guest"
    return "" if cluster.is_vmid_free(vmid) else f"a new guest has the VMID {vmid}"


def _remove(plugin: VmAction, node: str, volume: str) -> str:
    """Remove a volume; return the error of the Proxmox task; '' if there is none."""
    plugin.progress.write_line(f"removing the volume {volume}")
    storage = volume.partition(":")[0]
    answer = request.send(plugin, "DELETE", f"nodes/{node}/storage/{storage}/content/{volume}")
    return _wait_for_removal(plugin, str(answer.get("data") or ""))


def _wait_for_removal(plugin: VmAction, upid: str) -> str:
    """Wait for the Proxmox task `upid`; return its error, or '' if it has succeeded.

    If it is unknown whether Proxmox has executed the DELETE request, `upid` is ''. Then return '' without waiting: the
    action plugin checks afterwards which volumes still exist, and warns of them.
    """
    while upid:
        task = plugin.cluster.task(upid)
        if not is_running(task):
            return plugin.cluster.error_of(task) if has_failed(task) else ""
        if time.monotonic() > plugin.deadline_monotonic_s:
            return f"Proxmox task {upid} has not ended in time"
        time.sleep(POLL_S)
    return ""
