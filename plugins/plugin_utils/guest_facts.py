# SPDX-License-Identifier: Apache-2.0
"""Converts Proxmox's answers about a guest to the guest's facts. All functions are pure.

A configuration may have pending values, which take effect only after a reboot of the VM. The fact `config` contains the
pending value of each key that has one, and the current value of every other key. The fact `pending` lists the keys that
have a pending value. The fact `cloud_init_pending` lists the keys of changed cloud-init values that the running guest
reads only when it boots again. This module leaves the fact empty, because Proxmox does not report these keys with the
configuration.
"""

from __future__ import annotations

import ipaddress
import re
import urllib.parse
from typing import Any

from .shared.guest_disks import CONTAINER_VOLUME_KEY, GIB, VM_DISK_KEY, boot_disk, disks_of, is_cloud_init, size_of
from .shared.marker import marker_values_in

#: Locks that a guest has while Proxmox is creating it.
CREATION_LOCKS = ("clone", "create")
#: Maximum number of addresses in the facts. The executor accepts no more in `vm_result`, the result of a playbook.
MAX_ADDRESSES = 64
NIC_KEY = re.compile(r"net\d+\Z")
MAC = re.compile(r"=((?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2})")


def facts_of_absent_guest(vmid: int) -> dict[str, Any]:
    """Return the facts of a guest that was not found."""
    return {
        "exists": False,
        "kind": "",
        "vmid": vmid,
        "node": "",
        "name": "",
        "status": "absent",
        "is_ha_managed": False,  # whether the guest is a resource of the HA manager
        "ha_state": "",  # the guest's HA state; empty if the HA manager does not manage it or has not processed it
        "is_template": False,
        "is_protected": False,
        "lock": "",
        "markers": [],
        "tags": [],
        "mac_address": "",
        "ip_addresses": [],
        "pending": [],
        "cloud_init_pending": [],
        **{"cores": 0, "sockets": 0, "memory_mib": 0, "disk": "", "disk_bytes": 0, "disk_gib": 0, "disks": {}},
        **{"has_cloud_init": False, "has_password": False, "ssh_public_keys": []},
        "config": {},
        # Whether it is proven that the guest does not exist. If not, `code` is an error code, and `text` the reason.
        # `code` and `text` are empty if the absence is proven, or was not checked.
        "absence": {"is_proven": False, "code": "", "text": ""},
    }


def unproven_absence(code: str, text: str) -> dict[str, Any]:
    """Return the fact `absence` for a VM whose absence is not proven, with the error code and the reason."""
    return {"is_proven": False, "code": code, "text": text}


def facts_from_configuration(rows: list[dict[str, Any]], status: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of a VM, without its password. The caller adds `exists`, `kind`, `vmid` and `node`.

    `rows` is Proxmox's answer to a request for `pending`, and `status` its answer to a request for `status/current`.
    """
    current_values = {row["key"]: row["value"] for row in rows if "value" in row}
    values_after_reboot = {row["key"]: row.get("pending", row.get("value")) for row in rows if not row.get("delete")}
    pending = sorted(row["key"] for row in rows if "pending" in row or row.get("delete"))
    has_password = values_after_reboot.pop("cipassword", None) is not None
    description = str(values_after_reboot.get("description", ""))
    disk = boot_disk(values_after_reboot)
    disk_bytes = size_of(str(values_after_reboot[disk])) if disk else 0
    return {
        "name": str(current_values.get("name", "")),
        "status": str(status.get("status", "")),
        "qmp_status": str(status.get("qmpstatus", "")),
        "is_ha_managed": bool(int((status.get("ha") or {}).get("managed") or 0)),
        "ha_state": str((status.get("ha") or {}).get("state") or ""),
        "is_template": bool(int(current_values.get("template") or 0)),
        "is_protected": str(current_values.get("protection", "0")) in ("1", "True"),
        "lock": str(current_values.get("lock") or status.get("lock") or ""),
        "markers": marker_values_in(description),
        "tags": sorted({tag.lower() for tag in re.split(r"[,; ]+", str(values_after_reboot.get("tags", ""))) if tag}),
        "cores": int(values_after_reboot.get("cores") or 1),
        "sockets": int(values_after_reboot.get("sockets") or 1),
        "memory_mib": int(
            re.sub(r"\D.*", "", str(values_after_reboot.get("memory") or 512).removeprefix("current=")) or 512
        ),
        "disk": disk,
        "disks": disks_of(values_after_reboot),
        "disk_bytes": disk_bytes,
        "disk_gib": -(-disk_bytes // GIB),
        "has_cloud_init": any(
            is_cloud_init(str(value)) for key, value in values_after_reboot.items() if VM_DISK_KEY.match(key)
        ),
        "has_password": has_password,
        "ssh_public_keys": urllib.parse.unquote(str(values_after_reboot.get("sshkeys", ""))).split("\n"),
        "mac_address": mac_of(str(values_after_reboot.get("net0", ""))),
        "ip_addresses": [],
        "pending": pending,
        "cloud_init_pending": [],
        "config": values_after_reboot,
        "absence": {"is_proven": False, "code": "", "text": ""},  # not checked, because the guest exists
    }


def container_facts_from_configuration(rows: list[dict[str, Any]], status: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of a container. Its name is its host name, and its first disk is the root volume."""
    facts = facts_from_configuration(rows, status)
    config = facts["config"]
    volumes = {key: str(value) for key, value in config.items() if CONTAINER_VOLUME_KEY.match(key)}
    size = size_of(volumes.get("rootfs", ""))
    return facts | {
        "name": str(next((row.get("value", "") for row in rows if row["key"] == "hostname"), "")),
        "cores": int(config.get("cores") or 0),  # 0 means no limit: the container may use all cores of the node
        "disk": "rootfs",
        "disk_bytes": size,
        "disk_gib": -(-size // GIB),
        "disks": {key: {"storage": text.partition(":")[0], "bytes": size_of(text)} for key, text in volumes.items()},
        "has_cloud_init": False,
    }


def mac_of(nic_value: str) -> str:
    """Return the MAC address in the value of a NIC (`net0`, `net1`, …); '' if it has none."""
    found = MAC.search(nic_value)
    return found.group(1).upper() if found else ""


def macs_of(config: dict[str, Any]) -> list[str]:
    """Return the MAC addresses of the VM's NICs in order of their numbers."""
    nics = sorted((int(key[3:]), str(value)) for key, value in config.items() if NIC_KEY.match(key))
    return [mac for _number, value in nics if (mac := mac_of(value))]


def container_addresses(interfaces: Any, macs: list[str]) -> list[str]:
    """Return a container's IP addresses that other hosts can reach.

    For a container, Proxmox reports `interfaces` in another format than for a VM. This function converts the format,
    and `reachable_addresses` selects the addresses.
    """
    converted_interfaces = [
        {
            "name": nic.get("name"),
            "hardware-address": nic.get("hwaddr") or nic.get("hardware-address"),
            "ip-addresses": [{"ip-address": str(nic[key]).partition("/")[0]}],
        }
        for key in ("inet", "inet6")
        for nic in _objects_in(interfaces)
        if nic.get(key)
    ]
    return reachable_addresses(converted_interfaces, macs)


def reachable_addresses(interfaces: Any, macs: list[str]) -> list[str]:
    """Return the IP addresses that other hosts can reach, IPv4 first, in the order of the VM's NICs.

    `interfaces` comes from inside the guest, so values of an unexpected form are ignored. `macs` contains the MAC
    addresses of the VM's NICs. Interfaces with other MAC addresses are bridges and tunnels inside the guest; their
    addresses are ignored. If `macs` is empty, for example because a physical NIC is passed through to the VM, the
    addresses of all interfaces are used.
    """
    sortable_addresses = []
    for nic in _objects_in(interfaces):
        mac = str(nic.get("hardware-address") or "").upper()
        if nic.get("name") == "lo" or (macs and mac not in macs):
            continue
        for item in _objects_in(nic.get("ip-addresses")):
            if ip := _reachable_address(item.get("ip-address")):
                sortable_addresses.append((":" in ip, macs.index(mac) if macs else 0, ip))
    sortable_addresses.sort(key=lambda entry: entry[:2])
    return list(dict.fromkeys(ip for _is_v6, _nic, ip in sortable_addresses))[:MAX_ADDRESSES]


def _objects_in(value: Any) -> list[dict[str, Any]]:
    """Return the JSON objects in a list; [] for anything else."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _reachable_address(text: Any) -> str:
    """Return an IP address in its usual form; '' for another text, and for an address that other hosts cannot reach.

    An IPv6 address with a zone (the part after `%`) is ignored, because the guest may choose any text as the zone.
    """
    try:
        address = ipaddress.ip_address(text if isinstance(text, str) else "")
    except ValueError:
        return ""
    mapped_address = getattr(address, "ipv4_mapped", None) or address
    is_unreachable = any(
        (ip.is_loopback or ip.is_link_local or ip.is_unspecified or ip.is_multicast) for ip in (address, mapped_address)
    )
    return "" if is_unreachable or getattr(address, "scope_id", None) else str(address)
