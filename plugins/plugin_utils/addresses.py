# SPDX-License-Identifier: Apache-2.0
"""Decides whether the requested addresses, gateways and name servers of a guest are valid.

`vm` is the request (docs/actions.md). The action plugins call these functions before the first change. Proxmox
checks an address only when it is written to a configuration: for a clone, this is after the clone is made. All
functions are pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .nics import requested_nics
from .shared.addresses import cidr_problem, gateway_problem, is_address

#: The members of a requested NIC for mode, address and gateway, by the IP version.
ADDRESS_MEMBERS = {4: ("mode", "ipv4_cidr", "ipv4_gateway"), 6: ("ipv6_mode", "ipv6_cidr", "ipv6_gateway")}


def address_problems(vm: dict[str, Any]) -> Iterator[str]:
    """Yield the problems of the requested addresses, gateways and name servers.

    An empty text is yielded for each NIC and IP version that has no problem.
    """
    for number, nic in requested_nics(vm).items():
        name = "network" if number == 0 else f"networks[{number}]"
        for version in ADDRESS_MEMBERS:
            yield _nic_problem(name, nic, version)
    servers = (vm.get("network") or {}).get("dns_servers") or []
    if not all(is_address(str(server)) for server in servers):
        yield "INVALID_REQUEST: network.dns_servers contains text that is not an IP address"


def has_static_address(vm: dict[str, Any]) -> bool:
    """Return True if the request has a static address for a NIC."""
    return any(
        nic.get(mode) == "static"
        for nic in requested_nics(vm).values()
        for mode, _cidr, _gw in ADDRESS_MEMBERS.values()
    )


def _nic_problem(name: str, nic: dict[str, Any], version: int) -> str:
    mode_name, cidr_name, gateway_name = ADDRESS_MEMBERS[version]
    cidr, gateway = str(nic.get(cidr_name) or ""), str(nic.get(gateway_name) or "")
    is_static = nic.get(mode_name) == "static"
    if is_static and not cidr:
        return f"INVALID_REQUEST: {name}.{mode_name} is static, so {name}.{cidr_name} is required"
    if not is_static and (cidr or gateway):
        member = cidr_name if cidr else gateway_name
        return f"INVALID_REQUEST: {name}.{member} is allowed only if {name}.{mode_name} is static"
    if cidr and (problem := cidr_problem(cidr, version)):
        return f"INVALID_REQUEST: {name}.{cidr_name} {problem}"
    if gateway and (problem := gateway_problem(gateway, cidr, version)):
        return f"INVALID_REQUEST: {name}.{gateway_name} {problem}"
    return ""
