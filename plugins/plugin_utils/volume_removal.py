# SPDX-License-Identifier: Apache-2.0
"""Removes volumes of a deleted guest that Proxmox could not remove, if the operator allows it.

Only a volume whose id stood in the guest's configuration or snapshots before its deletion is removed. Another one that
has the guest's VMID may be of another cluster that uses the same storage.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from . import request
from .client import FAILED_CALL, error_text
from .proxmox_tasks import failed, is_running
from .vm_action import Refused, VmAction

#: The time between two polls of a Proxmox task that removes a volume.
POLL_S = 0.5
#: The exceptions after which a volume may still exist.
FAILURES: tuple[type[Exception], ...] = (Refused, *FAILED_CALL)


def remove_volumes(action: VmAction, node: str, volumes: Iterable[str]) -> None:
    """Remove these volumes. A volume that cannot be removed is a warning: the guest is deleted in any case."""
    for volume in volumes:
        storage = volume.partition(":")[0]
        action.progress.step(f"removing the volume {volume}")
        try:
            answer = request.send(action, "DELETE", f"nodes/{node}/storage/{storage}/content/{volume}")
            problem = _end_of(action, str(answer.get("data") or ""))
        except FAILURES as exc:
            problem = error_text(exc)
        if problem:
            action.warn(f"The volume {volume} was not removed: {problem}")


def _end_of(action: VmAction, upid: str) -> str:
    """Wait for the Proxmox task; return its error, or an empty text if it has removed the volume."""
    while upid:
        task = action.cluster.task(upid)
        if not is_running(task):
            return action.cluster.error_of(task) if failed(task) else ""
        if time.monotonic() > action.deadline_monotonic_s:
            return f"Proxmox task {upid} has not ended in time"
        time.sleep(POLL_S)
    return ""
