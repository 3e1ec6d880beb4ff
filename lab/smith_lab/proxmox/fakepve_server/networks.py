# SPDX-License-Identifier: AGPL-3.0-or-later
"""Lists the CPU models of a node, and refuses to start a guest on a bridge that does not exist.

Sources: qemu-server: PVE/API2/Qemu/CPU.pm, index; pve-common: PVE/Network.pm, read_bridge_mtu.
"""

from __future__ import annotations

import re
from typing import Any

from fakepve.model import TaskError

from smith_lab.proxmox.fakepve_server.access import AccessChecks

#: Some of the CPU models that Proxmox lists.
CPU_MODELS = ("host", "max", "kvm64", "qemu64", "x86-64-v2-AES", "x86-64-v3", "x86-64-v4", "EPYC", "Skylake-Server")
BRIDGE = re.compile(r"(?:^|,)bridge=([^,]+)")


class Networks(AccessChecks):
    """Answers the request for CPU models, and checks bridges when a guest starts."""

    def _routes_cpu_models(self) -> list[tuple[str, str, Any]]:
        return [("GET", "/nodes/{node}/capabilities/qemu/cpu", self._cpu_models)]

    async def _cpu_models(self, v: dict[str, Any], user: str) -> list[dict[str, Any]]:
        return [{"name": name, "custom": 0, "vendor": "default"} for name in CPU_MODELS]

    async def task(  # noqa: PLR0917 - the signature is fakepve's
        self, node: str, ttype: str, tid: Any, user: str, body: Any, vm: Any = None, **kwargs: Any
    ) -> str:
        """Start a Proxmox task. The start of a guest fails if one of its bridges does not exist."""

        async def checked_body() -> Any:
            if ttype in ("qmstart", "vzstart") and vm is not None:
                self._require_bridges(vm)
            return await body()

        return str(await super().task(node, ttype, tid, user, checked_body, vm=vm, **kwargs))

    def _require_bridges(self, guest: Any) -> None:
        nics = [str(value) for key, value in guest.config.items() if re.fullmatch(r"net\d+", key)]
        for bridge in [bridge for nic in nics for bridge in BRIDGE.findall(nic)]:
            if bridge not in {*self.bridges, *self.unlisted_bridges, *self.vnets}:
                raise TaskError(f"bridge '{bridge}' does not exist")
