# SPDX-License-Identifier: Apache-2.0
"""Translates the requested sizes, disks, NICs and login of a VM to parameters of the modules of community.proxmox.

`vm` is the request (docs/actions.md), and `found` contains the facts of the VM, as `smith_vm_facts` returns them.
`source` contains the facts of the VM or, before a clone, of the template. A value that the request does not contain is
neither changed nor removed. No function sends a request.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

GIB = 1024**3
DISK_KEY = re.compile(r"scsi([12]?\d|30)|virtio(1[0-5]|\d)|sata[0-5]|ide[0-3]")
MAC_ADDRESS = re.compile(r"[0-9A-F][02468ACE](:[0-9A-F]{2}){5}")  # only unicast: the lowest bit of the first byte is 0
SNIPPET = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*:snippets/[A-Za-z0-9_][A-Za-z0-9_.-]*")
VOLUME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*:iso/[A-Za-z0-9_][A-Za-z0-9_.+-]*")
#: Proxmox states the rate limit of a NIC in megabytes per second. The request states it in megabits per second.
BITS_PER_BYTE = 8
#: Members of a requested NIC that configure its connection to the network, not its IP addresses.
LINK = ("bridge", "vlan", "firewall", "rate_mbps")
#: Name of the first disk that is added to a VM without disks.
FIRST_DISK = "scsi0"
#: The drive that holds the ISO image of a new VM.
CDROM = "ide2"


# ---------------------------------------------------------------------- the whole configuration


def wanted(found: dict[str, Any], vm: dict[str, Any]) -> dict[str, Any]:
    """Return all requested hardware and network parameters of proxmox_kvm, even if the VM already has their values.

    If the VM already has a requested value, the value is returned exactly as Proxmox writes it. So the caller can
    compare it with the configuration by `==`.
    """
    return {**_sizes(found, vm), **_options(found, vm), "net": interfaces(found, vm), **_guest_network(found, vm)}


def problem(source: dict[str, Any], vm: dict[str, Any], is_blank: bool = False) -> str:
    """Return why the request is impossible, as `CODE: reason`; an empty text if it is possible.

    `is_blank` is true if a VM without a template is created.
    """
    return next(filter(None, _problems(source, vm, is_blank)), "")


def _problems(source: dict[str, Any], vm: dict[str, Any], is_blank: bool) -> Iterator[str]:
    if vm.get("only_grows"):
        yield _growth_problem(source, vm)
    yield from _disk_problems(source, vm, is_blank)
    yield from _nic_problems(source, vm)
    yield from _guest_problems(source, vm)
    balloon_mib, memory_mib = vm.get("balloon_mib"), vm.get("memory_mib") or source.get("memory_mib")
    if balloon_mib is not None and memory_mib and int(balloon_mib) > int(memory_mib):
        yield f"INVALID_REQUEST: balloon_mib {balloon_mib} is more than the memory, {memory_mib} MiB"
    known = {*source["config"], *interfaces(source, vm)} | ({*asked_disks(source, vm), CDROM} if is_blank else set())
    for device in vm.get("boot_order") or []:
        if device not in known:
            yield f"INVALID_REQUEST: boot_order names {device}, which VM {source['vmid']} does not have yet"


# ---------------------------------------------------------------------- sizes and options


def _sizes(found: dict[str, Any], vm: dict[str, Any]) -> dict[str, Any]:
    cores, sockets, memory_mib, balloon_mib = (
        vm.get(name) for name in ("cores", "sockets", "memory_mib", "balloon_mib")
    )
    sizes: dict[str, Any] = {}
    if cores:  # if the request contains no `sockets`, `cores` is the total, so the VM gets one socket
        sizes |= {"cores": int(cores), "sockets": int(sockets or 1)}
    elif sockets:
        sizes["sockets"] = int(sockets)
    if memory_mib:
        sizes["memory"] = int(memory_mib)
    if balloon_mib is not None:
        sizes["balloon"] = int(balloon_mib)
    return sizes


def _options(found: dict[str, Any], vm: dict[str, Any]) -> dict[str, Any]:
    config = found["config"]
    options = {key: is_yes(vm[key]) for key in ("onboot", "protection") if vm.get(key) is not None}
    if vm.get("cpu_type"):
        options["cpu"] = _replaced_first(str(config.get("cpu", "")), str(vm["cpu_type"]), "cputype")
    if vm.get("guest_agent") is not None:
        options["agent"] = _agent(str(config.get("agent", "")), is_yes(vm["guest_agent"]))
    if vm.get("boot_order"):
        options["boot"] = "order=" + ";".join(str(device) for device in vm["boot_order"])
    return options


def is_yes(value: Any) -> bool:
    """Return the boolean that `value` means. A value from the command line or from Proxmox is a text."""
    return str(value).strip().lower() in ("1", "true", "yes", "on")


def _replaced_first(current: str, value: str, name: str) -> str:
    """Return a property string of Proxmox, such as `host,flags=+aes`, with its first value replaced.

    `name` is the key of the first value; Proxmox may omit this key. If the first value is already `value`, the
    text is not changed.
    """
    first, *rest = current.split(",")
    return current if first.removeprefix(f"{name}=") == value else ",".join([value, *rest])


def _agent(current: str, is_on: bool) -> str:
    """Return the value of the option `agent` with the guest agent switched on or off; its other parts are kept."""
    first, *rest = current.split(",")
    return current if is_yes(first.removeprefix("enabled=")) is is_on else ",".join([f"enabled={int(is_on)}", *rest])


# ---------------------------------------------------------------------- disks


def asked_disks(found: dict[str, Any], vm: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the requested size and storage of each disk, by the disk's name.

    In the request, `disk_gib` is the size of the first disk, and `disks` is a list of disks with their names. Size 0
    means that no size is requested, an empty storage that no storage is requested.
    """
    asked: dict[str, dict[str, Any]] = {}
    if vm.get("disk_gib"):
        asked[found.get("disk") or FIRST_DISK] = {"size_gib": int(vm["disk_gib"]), "storage": ""}
    for disk in vm.get("disks") or []:
        from_disk_gib = asked.get(str(disk.get("disk")), {})
        size_gib = int(disk.get("size_gib") or from_disk_gib.get("size_gib") or 0)
        asked[str(disk.get("disk"))] = {"size_gib": size_gib, "storage": str(disk.get("storage") or "")}
    return asked


def disk_steps(found: dict[str, Any], vm: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parameters of each call of proxmox_disk that is still needed to add, move or grow a disk."""
    steps: list[dict[str, Any]] = []
    for name, asked in asked_disks(found, vm).items():
        existing, size_gib, storage = found["disks"].get(name), asked["size_gib"], asked["storage"]
        if existing is None:
            steps.append(
                {"disk": name, "state": "present", "storage": storage or _default_storage(found, vm), "size": size_gib}
            )
            continue
        if storage and storage != existing["storage"]:
            steps.append({"disk": name, "state": "moved", "storage": storage})
        if size_gib * GIB > existing["bytes"]:
            steps.append({"disk": name, "state": "resized", "size": f"{size_gib}G"})
    return steps


def described(step: dict[str, Any]) -> str:
    """Return a text that describes an item of `disk_steps` to operators."""
    if step["state"] == "moved":
        return f"move to {step['storage']}"
    return f"add {step['size']}G on {step['storage']}" if step["state"] == "present" else step["size"]


def _default_storage(found: dict[str, Any], vm: dict[str, Any]) -> str:
    """Return the storage of a new disk for which no storage is requested.

    It is the storage in the request for the whole VM, or else the storage of the first disk.
    """
    return str(vm.get("storage") or found["disks"].get(found.get("disk"), {}).get("storage", ""))


def _disk_problems(source: dict[str, Any], vm: dict[str, Any], is_blank: bool) -> Iterator[str]:
    asked, named = asked_disks(source, vm), [str(disk.get("disk")) for disk in vm.get("disks") or []]
    if vm.get("disk_gib") and not source.get("disk") and not is_blank:
        yield f"INVALID_REQUEST: VM {source['vmid']} has no disk to resize to {vm['disk_gib']} GiB"
    if len(set(named)) < len(named):
        yield "INVALID_REQUEST: disks names one disk twice"
    for name, requested in asked.items():
        yield _disk_problem(source, vm, name, requested)


def _growth_problem(source: dict[str, Any], vm: dict[str, Any]) -> str:
    """Return why a resize is impossible: it may only grow disks, not add or move them."""
    if not asked_disks(source, vm):
        return "INVALID_REQUEST: a resize needs disk_gib or disks"
    others = [step["disk"] for step in disk_steps(source, vm) if step["state"] != "resized"]
    return (
        f"INVALID_REQUEST: a resize only grows disks, but {others[0]} does not exist or is on another storage"
        if others
        else ""
    )


def _disk_problem(source: dict[str, Any], vm: dict[str, Any], name: str, requested: dict[str, Any]) -> str:
    existing, size_gib = source["disks"].get(name), requested["size_gib"]
    if not DISK_KEY.fullmatch(name):
        return f"INVALID_REQUEST: {name} is not a disk name: scsi0-30, virtio0-15, sata0-5 or ide0-3"
    if existing is None and name in source["config"]:
        return f"INVALID_REQUEST: {name} is a CD-ROM or the cloud-init drive, not a disk"
    if existing is None and not size_gib:
        return f"INVALID_REQUEST: the new disk {name} needs size_gib"
    if existing is None and not (requested["storage"] or _default_storage(source, vm)):
        return f"INVALID_REQUEST: the new disk {name} needs a storage"
    if existing is not None and size_gib and size_gib * GIB < existing["bytes"]:
        what = "template" if source["is_template"] else "VM"
        return (
            f"INVALID_REQUEST: a disk cannot shrink: the {what}'s {name} has {-(-existing['bytes'] // GIB)} GiB, "
            f"{size_gib} GiB are requested"
        )
    return ""


# ---------------------------------------------------------------------- NICs


def nics(vm: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Return the requested members of each NIC, by the NIC's number.

    In the request, `network` and `bridge` apply to the first NIC. `networks` is a list of all NICs in their order.
    """
    network = vm.get("network") or {}
    first = {"bridge": network.get("bridge") or vm.get("bridge"), "vlan": network.get("vlan")}
    asked = {0: {**network, **first}}
    for number, nic in enumerate(vm.get("networks") or []):
        given = {key: value for key, value in nic.items() if value is not None}
        asked[number] = {**asked.get(number, {}), **given}
    return asked


def interfaces(found: dict[str, Any], vm: dict[str, Any]) -> dict[str, str]:
    """Return the requested values of the parameters `net0`, `net1` and so on, one for each requested NIC."""
    config, default_bridge = found["config"], _default_bridge(found, vm)
    values = {}
    for number, nic in nics(vm).items():
        current = str(config.get(f"net{number}", ""))
        asked = nic if current or number >= len(vm.get("networks") or []) else {"bridge": default_bridge, **nic}
        value = interface(current, asked)
        if value:
            values[f"net{number}"] = value
    return values


def interface(current: str, nic: dict[str, Any]) -> str:
    """Return the value of a NIC with only the requested changes; an empty text if the request contains no change.

    `current` is the value in the configuration, `nic` the request for this NIC. A `vlan` of 0 removes the VLAN tag, and
    a `rate_mbps` of 0 removes the rate limit.
    """
    mac = str(nic.get("mac") or "").upper()
    if not mac and all(nic.get(key) in (None, "") for key in LINK):
        return ""
    parts = dict(part.partition("=")[::2] for part in current.split(",") if part)
    model = next(iter(parts), "virtio")
    kept = parts or {model: ""}
    if mac and kept[model].upper() != mac:
        kept[model] = mac
    set_link(kept, nic)
    return ",".join(f"{key}={value}" if value else key for key, value in kept.items())


def set_link(parts: dict[str, str], nic: dict[str, Any]) -> None:
    """Set the requested members of LINK in `parts`, the options in a NIC's value.

    VMs and containers have the same options.
    """
    options = {
        "bridge": nic.get("bridge") or None,
        "tag": _text_of(nic.get("vlan")),
        "firewall": None if nic.get("firewall") is None else str(int(is_yes(nic["firewall"]))),
        "rate": None if nic.get("rate_mbps") is None else f"{float(nic['rate_mbps']) / BITS_PER_BYTE:g}",
    }
    for key, value in options.items():
        if value is not None:
            _set_option(parts, key, str(value))


def _set_option(parts: dict[str, str], key: str, value: str) -> None:
    """Set an option, unless it already has an equal value (1 equals 1.0). The value 0 removes the option."""
    if _number(parts.get(key, "0")) == _number(value):
        return
    parts.pop(key, None)
    if _number(value) != 0:
        parts[key] = value


def _number(text: str) -> float | str:
    """Return the number that the text contains; the text itself if it is not a number."""
    try:
        return float(text)
    except ValueError:
        return text


def _text_of(number: Any) -> str | None:
    return None if number is None else str(int(number))


def _default_bridge(found: dict[str, Any], vm: dict[str, Any]) -> str:
    """Return the bridge of a new NIC for which no bridge is requested. It is the bridge of the first NIC."""
    first = re.search(r"bridge=([^,]+)", str(found["config"].get("net0", "")))
    asked = (vm.get("network") or {}).get("bridge") or vm.get("bridge")
    return str(asked or (first.group(1) if first else ""))


def _nic_problems(source: dict[str, Any], vm: dict[str, Any]) -> Iterator[str]:
    for number, nic in nics(vm).items():
        mac = str(nic.get("mac") or "").upper()
        if mac and not MAC_ADDRESS.fullmatch(mac):
            yield f"INVALID_REQUEST: the MAC address of NIC {number} is not a unicast address"
        is_new = f"net{number}" not in source["config"]
        if number and is_new and not (nic.get("bridge") or _default_bridge(source, vm)):
            yield f"INVALID_REQUEST: the new NIC {number} needs a bridge"


# ---------------------------------------------------------------------- cloud-init


def _guest_network(found: dict[str, Any], vm: dict[str, Any]) -> dict[str, Any]:
    if not found.get("has_cloud_init"):
        return {}
    config, network = found["config"], vm.get("network") or {}
    addresses = {
        f"ipconfig{number}": ip_config(str(config.get(f"ipconfig{number}", "")), nic)
        for number, nic in nics(vm).items()
        if nic.get("mode") or nic.get("ipv6_mode")
    }
    return {
        "ipconfig": addresses,
        "nameservers": [str(server) for server in network.get("dns_servers") or []] or None,
        "searchdomains": [str(domain) for domain in network.get("search_domains") or []] or None,
    }


def ip_config(current: str, nic: dict[str, Any]) -> str:
    """Return the value of `ipconfig0`, `ipconfig1` and so on with the requested changes.

    `mode` sets the IPv4 address, and `ipv6_mode` sets the IPv6 address. Without `mode` the IPv4 settings are not
    changed, without `ipv6_mode` the IPv6 settings.
    """
    parts = dict(part.partition("=")[::2] for part in current.split(",") if part)
    set_addresses(parts, nic)
    order = [key for key in ("ip", "gw", "ip6", "gw6") if key in parts]
    return ",".join(f"{key}={parts[key]}" for key in order)


def set_addresses(parts: dict[str, str], nic: dict[str, Any]) -> None:
    """Set the requested addresses and gateways in `parts`, the options of `ipconfigN` or of a container's `netN`."""
    if nic.get("mode"):
        _set_address(parts, "ip", "gw", _address(nic["mode"], nic.get("ipv4_cidr")), nic.get("ipv4_gateway"))
    if nic.get("ipv6_mode"):
        _set_address(parts, "ip6", "gw6", _address(nic["ipv6_mode"], nic.get("ipv6_cidr")), nic.get("ipv6_gateway"))


def _address(mode: str, cidr: Any) -> str:
    """Return the address in Proxmox's notation: `dhcp`, `auto` for `slaac`, or the requested static address."""
    return str(cidr) if mode == "static" else {"slaac": "auto"}.get(str(mode), str(mode))


def _set_address(parts: dict[str, str], key: str, gateway_key: str, address: str, gateway: Any) -> None:
    parts[key] = address
    parts.pop(gateway_key, None)
    if gateway and address not in ("dhcp", "auto"):
        parts[gateway_key] = str(gateway)


def login(found: dict[str, Any], vm: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of the guest's login, except the password, and of the vendor's cloud-init snippet."""
    cloud_init = vm.get("cloud_init") or {}
    keys, snippet = ssh_keys(cloud_init.get("ssh_public_keys")), cloud_init.get("vendor_snippet")
    custom = None
    if snippet:
        others = [part for part in str(found["config"].get("cicustom", "")).split(",") if part]
        custom = ",".join([*(part for part in others if not part.startswith("vendor=")), f"vendor={snippet}"])
    return {"ciuser": cloud_init.get("user") or None, "sshkeys": "\n".join(keys) or None, "cicustom": custom}


def ssh_keys(keys: Any) -> list[str]:
    """Return the public keys as a list of lines, without line ends, empty lines and blanks around a key.

    An item of `keys` may contain several lines. The keys are not URL-encoded here, because the module encodes them.
    """
    return [line.strip() for key in keys or [] for line in re.split(r"[\r\n]+", str(key)) if line.strip()]


def _guest_problems(source: dict[str, Any], vm: dict[str, Any]) -> Iterator[str]:
    cloud_init, is_static = vm.get("cloud_init") or {}, False
    for number, nic in nics(vm).items():
        name = "network" if number == 0 else f"networks[{number}]"
        for mode, cidr in (("mode", "ipv4_cidr"), ("ipv6_mode", "ipv6_cidr")):
            is_static |= nic.get(mode) == "static"
            if nic.get(mode) == "static" and not nic.get(cidr):
                yield f"INVALID_REQUEST: {name} {mode} static needs {cidr}"
    if any("PRIVATE KEY" in str(key) for key in cloud_init.get("ssh_public_keys") or []):
        yield "INVALID_REQUEST: ssh_public_keys holds a private key"
    snippet = cloud_init.get("vendor_snippet")
    if snippet and not SNIPPET.fullmatch(str(snippet)):
        yield "INVALID_REQUEST: vendor_snippet is not of the form storage:snippets/file"
    if (is_static or any(cloud_init.values())) and not source["has_cloud_init"]:
        yield f"INVALID_REQUEST: VM {source['vmid']} has no cloud-init drive, so login and addresses cannot be set"


class FilterModule:
    """Ansible requires this class in every file in this folder. smith.py defines all filters."""

    def filters(self) -> dict[str, Any]:
        """Return no filters."""
        return {}
