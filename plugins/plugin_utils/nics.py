# SPDX-License-Identifier: Apache-2.0
"""Translates the requested NICs of a guest to values of `net0`, `net1` and so on.

`vm` is the request (docs/actions.md), and `facts` are the guest's facts, as `LookUp.run` returns them. `source`
contains the facts of the VM or, before a clone, of the template. A value that the request does not contain is
neither changed nor removed. All functions are pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from .request_values import is_yes

MAC_ADDRESS = re.compile(r"[0-9A-F][02468ACE](:[0-9A-F]{2}){5}")  # only unicast: the lowest bit of the first byte is 0
#: Proxmox states the rate limit of a NIC in megabytes per second. The request states it in megabits per second.
BITS_PER_BYTE = 8
#: Members of a requested NIC that configure its connection to the network, not its IP addresses.
LINK_MEMBERS = ("bridge", "vlan", "firewall", "rate_mbps")


def requested_nics(vm: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Return the requested members of each NIC, by the NIC's number.

    In the request, `network` and `bridge` apply to the first NIC. `networks` is a list of all NICs in their order.
    """
    network = vm.get("network") or {}
    first = {"bridge": network.get("bridge") or vm.get("bridge"), "vlan": network.get("vlan")}
    requested = {0: {**network, **first}}
    for number, nic in enumerate(vm.get("networks") or []):
        given = {key: value for key, value in nic.items() if value is not None}
        requested[number] = {**requested.get(number, {}), **given}
    return requested


def nic_values(facts: dict[str, Any], vm: dict[str, Any]) -> dict[str, str]:
    """Return the requested values of the parameters `net0`, `net1` and so on, one for each requested NIC."""
    config, bridge = facts["config"], default_bridge(facts, vm)
    values = {}
    for number, nic in requested_nics(vm).items():
        current = str(config.get(f"net{number}", ""))
        # A new NIC in the list `networks` gets the default bridge, unless it names another one.
        requested = nic if current or number >= len(vm.get("networks") or []) else {"bridge": bridge, **nic}
        value = nic_value(current, requested)
        if value:
            values[f"net{number}"] = value
    return values


def nic_value(current: str, nic: dict[str, Any]) -> str:
    """Return the value of a NIC with only the requested changes; an empty text if the request contains no change.

    `current` is the value in the configuration, `nic` the request for this NIC. A `vlan` of 0 removes the VLAN tag, and
    a `rate_mbps` of 0 removes the rate limit.
    """
    mac = str(nic.get("mac") or "").upper()
    if not mac and all(nic.get(key) in (None, "") for key in LINK_MEMBERS):
        return ""
    options = dict(part.partition("=")[::2] for part in current.split(",") if part)
    model = next(iter(options), "virtio")
    options = options or {model: ""}
    if mac and options[model].upper() != mac:
        options[model] = mac
    set_link(options, nic)
    return ",".join(f"{key}={value}" if value else key for key, value in options.items())


def set_link(options: dict[str, str], nic: dict[str, Any]) -> None:
    """Set the requested members of LINK_MEMBERS in `options`, those of a NIC's value.

    VMs and containers have the same options.
    """
    requested = {
        "bridge": nic.get("bridge") or None,
        "tag": _text_of(nic.get("vlan")),
        "firewall": None if nic.get("firewall") is None else str(int(is_yes(nic["firewall"]))),
        "rate": None if nic.get("rate_mbps") is None else f"{float(nic['rate_mbps']) / BITS_PER_BYTE:g}",
    }
    for key, value in requested.items():
        if value is not None:
            _set_option(options, key, str(value))


def option_of(value: str, key: str) -> str:
    """Return an option in the value of a NIC; an empty text if the NIC does not have it."""
    return dict(part.partition("=")[::2] for part in value.split(",")).get(key, "")


def _set_option(options: dict[str, str], key: str, value: str) -> None:
    """Set an option, unless it already has an equal value (1 equals 1.0). The value 0 removes the option."""
    if _number(options.get(key, "0")) == _number(value):
        return
    options.pop(key, None)
    if _number(value) != 0:
        options[key] = value


def _number(text: str) -> float | str:
    """Return the number that the text contains; the text itself if it is not a number."""
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
    current = re.search(r"bridge=([^,]+)", str(facts["config"].get("net0", "")))
    requested = (vm.get("network") or {}).get("bridge") or vm.get("bridge")
    return str(requested or (current.group(1) if current else ""))


def nic_problems(source: dict[str, Any], vm: dict[str, Any]) -> Iterator[str]:
    for number, nic in requested_nics(vm).items():
        mac = str(nic.get("mac") or "").upper()
        if mac and not MAC_ADDRESS.fullmatch(mac):
            yield f"INVALID_REQUEST: the MAC address of NIC {number} is not a unicast address"
        is_new = f"net{number}" not in source["config"]
        if number and is_new and not (nic.get("bridge") or default_bridge(source, vm)):
            yield f"INVALID_REQUEST: the new NIC {number} needs a bridge"
