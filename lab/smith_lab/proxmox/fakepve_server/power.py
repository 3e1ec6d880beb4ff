# SPDX-License-Identifier: AGPL-3.0-or-later
"""Answers power actions, such as `start`, as Proxmox does, in two cases in which fakepve answers differently.

fakepve is the simulation of Proxmox that this package extends. In one case, the guest's HA resource has the state
`error`. In the other, the VM is not on the node in the request.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web
from fakepve.model import FakeVm, PveError, TaskError
from fakepve.server import FakePve

#: The power actions before which Proxmox checks whether the VM runs. The check fails if the VM is on another node.
ACTIONS_ON_A_RUNNING_VM = ("reboot", "reset", "suspend", "resume")
#: The HA state in which the HA manager accepts no request.
ERROR_STATE = "error"


class PowerRequests(FakePve):
    """Handles power actions on guests.

    fakepve's methods `_ha_request` (for a VM) and `_ct_ha` (for a container) start the Proxmox task that
    requests a state from the HA manager.
    """

    async def _status_action(self, request: web.Request) -> web.Response:
        """Handle a power action. For ACTIONS_ON_A_RUNNING_VM, send Proxmox's error text if the node is wrong."""
        try:
            return await super()._status_action(request)
        except PveError as exc:
            action, node, vmid = (request.match_info[name] for name in ("action", "node", "vmid"))
            # fakepve's text is "Configuration file 'nodes/…' does not exist" if the VM is not on this node.
            is_on_another_node = exc.message.startswith("Configuration file") and action in ACTIONS_ON_A_RUNNING_VM
            if not is_on_another_node:
                raise
            raise PveError(500, f"unable to find configuration file for VM {vmid} on node '{node}'") from exc

    async def _ha_request(self, vm: FakeVm, user: str, state: str) -> str:
        if vm.ha_state == ERROR_STATE:
            return await self._start_failing_ha_task(vm, "vm", user, state)
        return str(await super()._ha_request(vm, user, state))

    async def _ct_ha(self, ct: Any, user: str, state: str, timeout: Any = None) -> str:
        if ct.ha_state == ERROR_STATE:
            return await self._start_failing_ha_task(ct, "ct", user, state)
        return str(await super()._ct_ha(ct, user, state, timeout))

    async def _start_failing_ha_task(self, guest: Any, kind: str, user: str, state: str) -> str:
        """Start a Proxmox task that fails as `ha-manager` does. Only the log of this Proxmox task names the cause."""
        verb, ha_service = "start" if state == "started" else "stop", f"{kind}:{guest.vmid}"
        log = [
            f"Requesting HA {verb} for {kind.upper()} {guest.vmid}",
            f"service '{ha_service}' in error state, must be disabled and fixed first",
        ]

        async def fail() -> None:
            raise TaskError(f"command 'ha-manager set {ha_service} --state {state}' failed: exit code 255")

        return str(await self.task(guest.node, f"ha{verb}", guest.vmid, user, fail, log=log))
