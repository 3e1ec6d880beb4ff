# SPDX-License-Identifier: Apache-2.0
"""Decides whether an address, its prefix length and its gateway fit together. Pure functions.

Each returned text continues a sentence that begins with the name of the value. The texts do not quote the values,
because a value may be confidential.
"""

from __future__ import annotations

import ipaddress

#: The prefix length of a network with only one address, by the IP version. Some providers use such networks, with a
#: gateway outside the network.
HOST_PREFIX_LENGTH = {4: 32, 6: 128}


def cidr_problem(cidr: str, version: int) -> str:
    """Return why a guest cannot have the address `cidr`, such as 192.0.2.10/24; '' if it can."""
    if "%" in cidr:
        return "contains an address with an IPv6 zone, which is not allowed"
    if not cidr.partition("/")[2].isdecimal():
        return f"needs a prefix length, as in {'192.0.2.10/24' if version == 4 else '2001:db8::10/64'}"
    interface = _interface(cidr)
    if interface is None or interface.version != version:
        return "is not an IP address of the required version"
    network, ip = interface.network, interface.ip
    # A network with the prefix length 31 or 32 has no network address and no broadcast address.
    if version == 4 and network.prefixlen < 31 and ip in (network.network_address, network.broadcast_address):
        return "is the address of the network or the broadcast address, not of a host"
    return "is not the address of a host" if ip.is_multicast or ip.is_unspecified else ""


def _interface(cidr: str) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface | None:
    try:
        return ipaddress.ip_interface(cidr)
    except ValueError:
        return None


def gateway_problem(gateway: str, cidr: str, version: int) -> str:
    """Return why the guest with the address `cidr` cannot use this gateway; '' if it can.

    `cidr` is valid, or '' if no address is requested; then only the gateway itself is checked.
    A gateway outside the network of the address is accepted in two cases: a link-local gateway of an IPv6 address, and
    any gateway of a network with only one address.
    """
    try:
        address = ipaddress.ip_address(gateway)
    except ValueError:
        return "is not an IP address of the required version"
    if address.version != version or "%" in gateway:
        return "is not an IP address of the required version"
    if not cidr:
        return ""
    interface = ipaddress.ip_interface(cidr)
    if address == interface.ip:
        return "is the address of the guest itself"
    is_reachable = address in interface.network or (version == 6 and address.is_link_local)
    if not is_reachable and interface.network.prefixlen != HOST_PREFIX_LENGTH[version]:
        return "is outside the network of the address"
    return ""


def is_address(text: str) -> bool:
    """Return True if the text is an IP address without a zone."""
    try:
        return "%" not in text and bool(ipaddress.ip_address(text))
    except ValueError:
        return False
