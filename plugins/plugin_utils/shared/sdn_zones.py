# SPDX-License-Identifier: Apache-2.0
"""Contains the pattern of VNet names, and reads the SDN zone of a VNet from an error text. All functions are pure."""

from __future__ import annotations

import re

#: The SDN zone to which the bridges of the nodes belong. A VNet never belongs to this zone.
LOCAL_ZONE = "localnetwork"
#: Matches a name that Proxmox accepts for a VNet.
VNET_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]{1,7}")
#: Matches the path of a VNet in the text of an error of Proxmox. Group 1 is the zone.
_VNET_PATH = re.compile(r"\(/sdn/zones/([^/,()]+)/")


def zone_in_refusal(text: str) -> str:
    """Return the SDN zone in the text of Proxmox's refusal to return a VNet; '' if the text contains no zone.

    The refusal names the path on which the login lacks the privilege to read the VNet. This path contains the zone. If
    no VNet has the requested name, Proxmox sends another text (see PVE/API2/Network/SDN/Vnets.pm in pve-network).
    """
    found = _VNET_PATH.search(text)
    return found.group(1) if found else ""
