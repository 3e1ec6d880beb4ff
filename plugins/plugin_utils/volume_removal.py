# SPDX-License-Identifier: Apache-2.0
"""Removes volumes of a deleted guest that Proxmox could not remove, if the operator allows it.

Proxmox does not check whether a guest uses a volume before it removes the volume. So the action removes a volume only
if each of these facts is known: the deleted guest's disks or snapshots used the volume; it was not replaced since the
deletion; its name has the VMID; no new guest has this VMID; no other guest names the volume in its configuration or in
a snapshot.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from typing import Any

from . import request, volumes
from .client import REQUEST_ERRORS, error_text
from .cluster import Cluster
from .proxmox_tasks import failed, is_running
from .vm_action import Refused, VmAction

#: The time between two polls of a Proxmox task that removes a volume.
POLL_S = 0.5
#: The exceptions after which a volume may still exist.
FAILURES: tuple[type[Exception], ...] = (Refused, *REQUEST_ERRORS)
#: Keys of a configuration whose values people write. Such a text may name a volume that the guest does not use.
TEXT_KEYS = ("description", "name", "hostname", "tags")

Row = dict[str, Any]


def rows_of_guest(cluster: Cluster, node: str, vmid: int, used: Iterable[str]) -> dict[str, Row]:
    """Return the rows of the volumes in `used` that exist and that Proxmox assigns to the VMID, by volume.

    A row is an entry of Proxmox's list of the volumes of a storage.
    """
    used = set(used)
    rows = [row for storage in volumes.storages_of(used) for row in cluster.volume_rows(node, storage, vmid)]
    return {str(row["volid"]): row for row in rows if row["volid"] in used and int(row.get("vmid") or 0) == vmid}


def remove_volumes(action: VmAction, node: str, rows: dict[str, Row]) -> None:
    """Remove these volumes of the deleted guest. `rows` contains their rows, as they were before the deletion.

    A volume that is not removed causes only a warning, because the guest is deleted in any case.
    """
    try:
        usage_texts = _usage_texts(action, rows)
    except FAILURES as exc:
        usage_texts = dict.fromkeys(rows, f"it is unknown whether another guest uses the volume: {error_text(exc)}")
    for volume, row in rows.items():
        try:
            problem = usage_texts.get(volume) or _reuse_problem(action.cluster, node, volume, row)
            problem = problem or _remove(action, node, volume)
        except FAILURES as exc:
            problem = error_text(exc)
        if problem:
            action.warn(f"The volume {volume} was not removed: {problem}")


def _usage_texts(action: VmAction, volumes_to_remove: Iterable[str]) -> dict[str, str]:
    """Return those of the volumes that the configuration of a guest names, each with a text about this guest.

    Two storages may show the same volumes, so volumes are compared by their names without the storage. Raises one of
    FAILURES if a configuration cannot be read.
    """
    cluster = action.cluster
    privileges_by_path = cluster.api.access.permissions.get(path="/vms")
    if not any(privileges.get("VM.Audit") for privileges in privileges_by_path.values()):
        raise Refused("the token lacks VM.Audit on /vms, so it does not see every guest")
    patterns = {volume: _pattern_of(volume) for volume in volumes_to_remove}
    usage_texts = {}
    for row in cluster.listed():
        action.require_time(0, "reading the configurations of all guests")
        guest = f"{'container' if row['type'] == 'lxc' else 'VM'} {row['vmid']} on {row['node']}"
        text = f"{guest} has this volume in its configuration or a snapshot"
        for value in _configuration_values(Cluster(cluster.api, str(row["type"]), cluster.login), row):
            usage_texts.update({volume: text for volume, pattern in patterns.items() if pattern.search(value)})
    return usage_texts


def _pattern_of(volume: str) -> re.Pattern[str]:
    """Return a pattern that finds the volume's name in a value, also as the base of another volume or in a path."""
    name = re.split(r"[:/]", volume)[-1]
    return re.compile(rf"(?<![\w.-]){re.escape(name)}(?![\w.-])")


def _configuration_values(cluster: Cluster, row: Row) -> Iterator[str]:
    """Yield the values of a guest's configuration and of its snapshots."""
    node, vmid = str(row["node"]), int(row["vmid"])
    settings = cluster.settings(node, vmid)
    for snapshot in cluster.snapshots(node, vmid):
        settings += cluster.guest(node, vmid).snapshot(snapshot["name"]).config.get().items()
    yield from (str(value) for key, value in settings if key not in TEXT_KEYS)


def _reuse_problem(cluster: Cluster, node: str, volume: str, row_before: Row) -> str:
    """Return why the volume may be another guest's now, or ''.

    It may be another guest's if its VMID has a guest again, or if the volume was created after its row `row_before`
    was read.
    """
    vmid = int(row_before["vmid"])
    row_now = rows_of_guest(cluster, node, vmid, [volume]).get(volume)
    if row_now is None:
        return f"Proxmox no longer lists the volume as one of VM {vmid}"
    if row_now.get("ctime") != row_before.get("ctime"):
        return "the volume was created after the deletion of the guest"
    return "" if cluster.is_vmid_free(vmid) else f"a new guest has the VMID {vmid}"


def _remove(action: VmAction, node: str, volume: str) -> str:
    """Remove a volume; return the error of the Proxmox task, or an empty text."""
    action.progress.step(f"removing the volume {volume}")
    storage = volume.partition(":")[0]
    answer = request.send(action, "DELETE", f"nodes/{node}/storage/{storage}/content/{volume}")
    return _wait_for_removal(action, str(answer.get("data") or ""))


def _wait_for_removal(action: VmAction, upid: str) -> str:
    """Wait for the Proxmox task; return its error, or an empty text if it has removed the volume."""
    while upid:
        task = action.cluster.task(upid)
        if not is_running(task):
            return action.cluster.error_of(task) if failed(task) else ""
        if time.monotonic() > action.deadline_monotonic_s:
            return f"Proxmox task {upid} has not ended in time"
        time.sleep(POLL_S)
    return ""
