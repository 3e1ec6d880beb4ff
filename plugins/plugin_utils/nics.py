# SPDX-License-Identifier: Apache-2.0
"""Translates the requested NICs of a guest to values of `net0`, `net1` and so on.

`vm` is the request (docs/actions.md). `facts` contains the guest's configuration and other data, as read from Proxmox.
Before a clone, `facts` contains the data of the template instead. A value that the request does not contain is neither
changed nor removed. All functions are pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from .request_values import is_yes

#: Matches a unicast MAC address: the lowest bit of its first byte is 0.
MAC_ADDRESS = re.compile(r"[0-9A-F][02468ACE](:[0-9A-F]{2}){5}")
#: Converts the rate limit of a NIC: the request has it in megabits per second, Proxmox in megabytes per second.
BITS_PER_BYTE = 8
#: The members of a requested NIC that configure its connection to the network. The other members are IP addresses and
#: the MAC address.
BRIDGE_PORT_MEMBERS = ("bridge", "vlan", "firewall", "rate_mbps")


def requested_nics(vm: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Return the members of each NIC in the request, such as `bridge` and `vlan`, by the NIC's number.

    In the request, `network` and `bridge` apply to the first NIC. `networks` is a list of NICs in their order; its
    values have precedence over `network` and `bridge`.
    """
    network = vm.get("network") or {}
    first_nic = {"bridge": network.get("bridge") or vm.get("bridge"), "vlan": network.get("vlan")}
    members_by_nic = {0: {**network, **first_nic}}
    for number, nic in enumerate(vm.get("networks") or []):
        given_members = {key: value for key, value in nic.items() if value is not None}
        members_by_nic[number] = {**members_by_nic.get(number, {}), **given_members}
    return members_by_nic


def requested_nic_values(facts: dict[str, Any], vm: dict[str, Any]) -> dict[str, str]:
    """Return the value of the Proxmox parameter `net0`, `net1` and so on for each NIC with requested changes."""
    config, bridge_of_new_nic = facts["config"], default_bridge(facts, vm)
    values = {}
    for number, nic in requested_nics(vm).items():
        current_value = str(config.get(f"net{number}", ""))
        if not current_value and number < len(vm.get("networks") or []):
            # A new NIC in `networks` gets the default bridge, unless the request names a bridge for this NIC.
            requested_nic = {"bridge": bridge_of_new_nic, **nic}
        else:
            requested_nic = nic
        value = nic_value(current_value, requested_nic)
        if value:
            values[f"net{number}"] = value
    return values


def nic_value(current_value: str, nic: dict[str, Any]) -> str:
    """Return the new value of a NIC (such as the text of `net0`): `current_value` with the requested changes in `nic`.

    Return '' if `nic` contains neither a MAC address nor one of BRIDGE_PORT_MEMBERS. A `vlan` of 0 removes the VLAN
    tag, and a `rate_mbps` of 0 removes the rate limit.
    """
    mac = str(nic.get("mac") or "").upper()
    if not mac and all(nic.get(key) in (None, "") for key in BRIDGE_PORT_MEMBERS):
        return ""
    options = dict(part.partition("=")[::2] for part in current_value.split(",") if part)
    model = next(iter(options), "virtio")
    options = options or {model: ""}
    if mac and options[model].upper() != mac:
        options[model] = mac
    set_bridge_port(options, nic)
    return ",".join(f"{key}={value}" if value else key for key, value in options.items())


def set_bridge_port(options: dict[str, str], nic: dict[str, Any]) -> None:
    """Set the requested BRIDGE_PORT_MEMBERS in `options`, the parsed value of a NIC of a VM or of a container."""
    requested_options = {
        "bridge": nic.get("bridge") or None,
        "tag": _text_of(nic.get("vlan")),
        "firewall": None if nic.get("firewall") is None else str(int(is_yes(nic["firewall"]))),
        "rate": None if nic.get("rate_mbps") is None else f"{float(nic['rate_mbps']) / BITS_PER_BYTE:g}",
    }
    for key, value in requested_options.items():
        if value is not None:
            _set_option(options, key, str(value))


def option_of(nic_value: str, key: str) -> str:
    """Return the value of the option `key` in the value of a NIC; an empty text if the NIC does not have the option."""
    return dict(part.partition("=")[::2] for part in nic_value.split(",")).get(key, "")


def _set_option(options: dict[str, str], key: str, value: str) -> None:
    """Set an option, unless it already has this value (1 equals 1.0). The value 0 removes the option."""
    if _number_or_text(options.get(key, "0")) == _number_or_text(value):
        return
    options.pop(key, None)
    if _number_or_text(value) != 0:
        options[key] = value


def _number_or_text(text: str) -> float | str:
    """Return the number that the text represents; the text itself if it is not a number."""
    try:
        return float(text)
    except ValueError:
        return text


def _text_of(number: Any) -> str | None:
    return None if number is None else str(int(number))


def default_bridge(facts: dict[str, Any], vm: dict[str, Any]) -> str:
    """Return the bridge of a new NIC for which no bridge is requested.

    It is the bridge that is requested for the first NIC, or else the first NIC's current bridge.
    """
    bridge_of_first_nic = re.search(r"bridge=([^,]+)", str(facts["config"].get("net0", "")))
    requested_bridge = (vm.get("network") or {}).get("bridge") or vm.get("bridge")
    return str(requested_bridge or (bridge_of_first_nic.group(1) if bridge_of_first_nic else ""))


def nic_problems(facts: dict[str, Any], vm: dict[str, Any]) -> Iterator[str]:
    """Yield an error `CODE: reason` for each MAC address that is not unicast, and for each new NIC without a bridge.

    NIC 0 is not checked for a bridge.
    """
    for number, nic in requested_nics(vm).items():
        mac = str(nic.get("mac") or "").upper()
        if mac and not MAC_ADDRESS.fullmatch(mac):
            yield f"INVALID_REQUEST: the MAC address of NIC {number} is not a unicast address"
        is_new_nic = f"net{number}" not in facts["config"]
        if number and is_new_nic and not (nic.get("bridge") or default_bridge(facts, vm)):
            yield f"INVALID_REQUEST: the new NIC {number} needs a bridge"
