# SPDX-License-Identifier: AGPL-3.0-or-later
"""Checks whether an API user may connect a guest to a bridge or VNet, as PVE/GuestHelpers.pm of Proxmox does."""

from __future__ import annotations

import re
from typing import Any

from fakepve.server import FakePve

#: The bridges of every node, unless a test sets others.
DEFAULT_BRIDGES = ("vmbr0", "vmbr1")


class BridgeAccess(FakePve):
    """Stores the bridges and VNets of the cluster, and checks the privilege SDN.Use for NICs.

    fakepve is the simulation of Proxmox that this package extends.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bridges: set[str] = set(DEFAULT_BRIDGES)
        #: Bridges that exist, but that Proxmox does not list, for example because they are defined in
        #: /etc/network/interfaces.d. They are not in `bridges`.
        self.unlisted_bridges: set[str] = set()
        self.vnets: dict[str, str] = {}  #: the SDN zone of each VNet that a test has added

    def _check_bridges(self, user: str, values: dict[str, Any]) -> None:
        """Require SDN.Use for each NIC in these values of a guest's configuration."""
        for key, value in values.items():
            if re.fullmatch(r"net\d+", key):
                self._check_bridge(user, str(value))

    def _check_bridge(self, user: str, nic: str) -> None:
        """Require SDN.Use for one NIC of a VM or container (pve-guest-common: check_vnet_access).

        For a NIC with a VLAN tag or with trunks, the caller needs the privilege on the path of each of these VLANs. For
        any other NIC, the caller needs the privilege on the path of the bridge.
        """
        options = dict(part.partition("=")[::2] for part in nic.split(","))
        if "bridge" in options:
            vlans = [vlan for vlan in (options.get("tag"), *_vlans_of_trunks(options.get("trunks", ""))) if vlan]
            for suffix in [f"/{vlan}" for vlan in vlans] or [""]:
                self.require(user, f"{self._path_of_bridge(options['bridge'])}{suffix}", "SDN.Use")

    def _path_of_bridge(self, bridge: str) -> str:
        return f"/sdn/zones/{self.vnets.get(bridge, 'localnetwork')}/{bridge}"


def _vlans_of_trunks(trunks: str) -> list[str]:
    """Return the VLANs in trunks such as `4;10-12`, in the order in which Proxmox checks them (sorted as texts)."""
    vlans: set[str] = set()
    for trunk in filter(None, trunks.split(";")):
        first, _, last = trunk.partition("-")
        vlans |= {str(vlan) for vlan in range(int(first), max(int(last or first), int(first)) + 1)}
    return sorted(vlans)
