# SPDX-License-Identifier: Apache-2.0
"""Knows how Proxmox names the SDN zone of a VNet. All functions are pure."""

from __future__ import annotations

import re

#: Proxmox's name for the SDN zone of all bridges of the nodes. A VNet belongs to another zone.
LOCAL_ZONE = "localnetwork"
#: What Proxmox accepts as the name of a VNet.
VNET_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]{1,7}")
#: The path of a VNet in the refusal of a request for it.
_VNET_PATH = re.compile(r"\(/sdn/zones/([^/,()]+)/")


def zone_in_refusal(text: str) -> str:
    """Return the zone of a VNet that the login may not read; '' if the text is not the refusal of such a request.

    Proxmox's refusal names the path on which the privilege is missing, and this path contains the zone. If no VNet has
    the requested name, Proxmox refuses with another text (read in pve-network: PVE/API2/Network/SDN/Vnets.pm).
    """
    found = _VNET_PATH.search(text)
    return found.group(1) if found else ""
