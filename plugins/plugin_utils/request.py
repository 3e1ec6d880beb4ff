# SPDX-License-Identifier: Apache-2.0
"""Sends the requests that change something at Proxmox and that no module of community.proxmox can send.

`send` is the only function of the action plugins that changes something at Proxmox without a module. docs/actions.md
lists its callers and their reasons.
"""

from __future__ import annotations

from typing import Any

from .client import REQUEST_ERRORS, error_text
from .failures import is_outcome_unknown, proxmox_failure
from .vm_action import Refused, VmAction


def send(plugin: VmAction, method: str, path: str, **parameters: Any) -> dict[str, Any]:
    """Send a request, such as PUT `nodes/pve1/qemu/100/cloudinit`. Return Proxmox's answer as `data`.

    The plugin reports the request in its result, and uses the answer for its next look-up. If it is unknown whether
    Proxmox has executed the request, return `failed` and `msg`, as a module does; the next look-up then shows the
    outcome. Raises Refused, which fails the Ansible task, if Proxmox refused the request. Before the request,
    `require_change_allowed` raises Refused if ansible-playbook was killed, if the agent has lost its leases, or if this
    is the plugin's first change and no time is left.
    """
    plugin.require_change_allowed()
    plugin.requests.append(f"{method} {path}")
    try:
        answer = {"data": getattr(plugin.cluster.api(path), method.lower())(**parameters)}
    except REQUEST_ERRORS as exc:
        answer = {"failed": True, "msg": error_text(exc)}
        # A module sends several requests. This function sends one, so no earlier request can have changed anything.
        if not is_outcome_unknown(answer, is_single_request=True):
            raise Refused(proxmox_failure(answer)) from exc
    plugin.store_answer(answer)
    return answer
