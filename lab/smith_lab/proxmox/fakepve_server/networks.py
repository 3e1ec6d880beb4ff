# SPDX-License-Identifier: AGPL-3.0-or-later
"""Lists bridges, VNets and CPU models, and refuses to start a guest on a bridge that does not exist.

Sources: pve-manager: PVE/API2/Network.pm, index; pve-access-control: PVE/RPCEnvironment.pm, check_sdn_bridge;
pve-network: PVE/API2/Network/SDN/Vnets.pm, index and read; qemu-server: PVE/API2/Qemu/CPU.pm, index; pve-common:
PVE/Network.pm, read_bridge_mtu.
"""

from __future__ import annotations

import re
from typing import Any

from fakepve.model import TaskError
from fakepve.routing import die

from smith_lab.proxmox.fakepve_server.access import OR_SIGN, AccessChecks

#: Some of the CPU models that Proxmox lists.
CPU_MODELS = ("host", "max", "kvm64", "qemu64", "x86-64-v2-AES", "x86-64-v3", "x86-64-v4", "EPYC", "Skylake-Server")
#: The caller needs one of these privileges to see a bridge. OR_SIGN is the separator of alternative privileges.
PRIVILEGES_TO_SEE_BRIDGE = OR_SIGN.join(("SDN.Use", "SDN.Audit"))
#: The caller needs one of these privileges to read a VNet.
PRIVILEGES_TO_READ_VNET = OR_SIGN.join(("SDN.Audit", "SDN.Allocate"))
BRIDGE_IN_NIC = re.compile(r"(?:^|,)bridge=([^,]+)")


class Networks(AccessChecks):
    """Answers the requests for bridges, VNets and CPU models, and checks bridges when a guest starts.

    `v` contains the values of a request: the parameters of the path, the query and the body.
    `ttype` is the type of a Proxmox task, such as `qmstart`. `tid` is the id of the object on which the Proxmox task
    works, mostly a VMID. `vm` is the VM or container on which the Proxmox task works, or None. `body` does the work of
    the Proxmox task. `die` makes the exception for an error answer. fakepve is the simulation of Proxmox that this
    package extends.
    """

    def _routes_networks(self) -> list[tuple[str, str, Any]]:
        """Return the routes of the requests. fakepve calls every method whose name starts with `_routes_`."""
        return [
            ("GET", "/nodes/{node}/network", self._bridge_list),
            ("GET", "/cluster/sdn/vnets", self._vnet_list),
            ("GET", "/cluster/sdn/vnets/{vnet}", self._vnet_read),
            ("GET", "/nodes/{node}/capabilities/qemu/cpu", self._cpu_models),
        ]

    async def _bridge_list(self, _v: dict[str, Any], user: str) -> list[dict[str, Any]]:
        """List the bridges and VNets that the caller may see, as Proxmox does with `type=any_bridge`."""
        names = [name for name in (*sorted(self.bridges), *self.vnets) if self._is_visible(user, name)]
        return [{"iface": name, "type": "vnet" if name in self.vnets else "bridge", "active": 1} for name in names]

    def _is_visible(self, user: str, bridge: str) -> bool:
        """Return whether the caller has SDN.Use or SDN.Audit on a bridge, or on one VLAN of the bridge."""
        path = self._path_of_bridge(bridge)  # the permission path, such as /sdn/zones/localnetwork/vmbr0
        paths = {path, *(each for each in self.granted_paths(user) if each.startswith(f"{path}/"))}
        return any(self.allowed(user, each, PRIVILEGES_TO_SEE_BRIDGE) for each in paths)

    async def _vnet_list(self, _v: dict[str, Any], user: str) -> list[dict[str, Any]]:
        """List the VNets that the caller may read."""
        return [
            self._vnet_row(name)
            for name in self.vnets
            if self.allowed(user, self._path_of_bridge(name), PRIVILEGES_TO_READ_VNET)
        ]

    async def _vnet_read(self, v: dict[str, Any], user: str) -> dict[str, Any]:
        """Return one VNet. As in Proxmox, the error for a missing privilege contains the path with the VNet's zone."""
        name = str(v["vnet"])
        if name not in self.vnets:
            raise die(f"sdn vnet '{name}' does not exist")
        self.require(user, self._path_of_bridge(name), PRIVILEGES_TO_READ_VNET)
        return self._vnet_row(name)

    def _vnet_row(self, vnet: str) -> dict[str, Any]:
        return {"vnet": vnet, "zone": self.vnets[vnet], "type": "vnet", "digest": "0" * 40}

    async def _cpu_models(self, v: dict[str, Any], user: str) -> list[dict[str, Any]]:
        return [{"name": name, "custom": 0, "vendor": "default"} for name in CPU_MODELS]

    async def task(  # noqa: PLR0917 - the signature is fakepve's
        self, node: str, ttype: str, tid: Any, user: str, body: Any, vm: Any = None, **kwargs: Any
    ) -> str:
        """Start a Proxmox task. The start of a guest fails if one of its bridges does not exist."""

        async def checked_body() -> Any:
            if ttype in ("qmstart", "vzstart") and vm is not None:
                self._require_existing_bridges(vm)
            return await body()

        return str(await super().task(node, ttype, tid, user, checked_body, vm=vm, **kwargs))

    def _require_existing_bridges(self, guest: Any) -> None:
        nics = [str(value) for key, value in guest.config.items() if re.fullmatch(r"net\d+", key)]
        for bridge in [bridge for nic in nics for bridge in BRIDGE_IN_NIC.findall(nic)]:
            # `unlisted_bridges` exist, but Proxmox does not list them. Example: a bridge that is defined in
            # /etc/network/interfaces.d.
            if bridge not in {*self.bridges, *self.unlisted_bridges, *self.vnets}:
                raise TaskError(f"bridge '{bridge}' does not exist")
