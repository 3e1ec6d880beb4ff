# SPDX-License-Identifier: Apache-2.0
"""Translates a guest's requested login and addresses to parameters of the module proxmox_kvm.

In this module, a guest's login is all its cloud-init values except the network: user, password, SSH keys, and the
snippet (`vendor_snippet`). `vm` is the request (docs/actions.md). `facts` contains the status, the configuration and
other data of the guest, as read from Proxmox. `source` contains the facts of the VM or, before a clone, of the
template. A value that the request does not contain is neither changed nor removed. All functions are pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from .addresses import address_problems, has_static_address
from .nics import requested_nics
from .shared.ssh_keys import is_public_key

#: Matches the volume of a snippet, such as local:snippets/vendor.yml.
SNIPPET_VOLUME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*:snippets/[A-Za-z0-9_][A-Za-z0-9_.-]*")
#: The keys of cloud-init values in Proxmox's configuration, by the name of the parameter of proxmox_kvm.
CONFIG_KEYS = {
    "ciuser": "ciuser",
    "cipassword": "cipassword",
    "sshkeys": "sshkeys",
    "cicustom": "cicustom",
    "nameservers": "nameserver",
    "searchdomains": "searchdomain",
}


def requested_parameters(facts: dict[str, Any], vm: dict[str, Any]) -> dict[str, Any]:
    """Return all requested cloud-init parameters of proxmox_kvm, even if the VM already has their values."""
    password = (vm.get("cloud_init") or {}).get("password") or None
    return {**network_parameters(facts, vm), **login_parameters(facts, vm), "cipassword": password}


def keys_to_remove(facts: dict[str, Any], vm: dict[str, Any]) -> list[str]:
    """Return the keys of the configuration that the request removes.

    An empty list of name servers or of search domains removes their key.
    """
    network, config = vm.get("network") or {}, facts["config"]
    members = {"nameserver": "dns_servers", "searchdomain": "search_domains"}
    return [key for key, member in members.items() if network.get(member) == [] and config.get(key)]


def config_keys_of(parameters: dict[str, Any]) -> set[str]:
    """Return the keys in Proxmox's configuration that these parameters of proxmox_kvm set.

    Only keys of cloud-init values are returned. A parameter that is None sets nothing.
    """
    keys = {key for name, key in CONFIG_KEYS.items() if parameters.get(name) is not None}
    return keys | set(parameters.get("ipconfig") or {})


def network_parameters(facts: dict[str, Any], vm: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters for addresses, name servers and search domains; {} if the VM has no cloud-init drive."""
    if not facts.get("has_cloud_init"):
        return {}
    config, network = facts["config"], vm.get("network") or {}
    addresses = {
        f"ipconfig{number}": ip_config(str(config.get(f"ipconfig{number}", "")), nic)
        for number, nic in requested_nics(vm).items()
        if nic.get("mode") or nic.get("ipv6_mode")
    }
    return {
        "ipconfig": addresses,
        "nameservers": [str(server) for server in network.get("dns_servers") or []] or None,
        "searchdomains": [str(domain) for domain in network.get("search_domains") or []] or None,
    }


def ip_config(current_value: str, nic: dict[str, Any]) -> str:
    """Return the value of `ipconfig0`, `ipconfig1` and so on: `current_value` with the requested changes.

    `mode` sets the IPv4 address, and `ipv6_mode` sets the IPv6 address. Without `mode` the IPv4 settings are not
    changed, without `ipv6_mode` the IPv6 settings.
    """
    options = dict(part.partition("=")[::2] for part in current_value.split(",") if part)
    set_addresses(options, nic)
    order = [key for key in ("ip", "gw", "ip6", "gw6") if key in options]
    return ",".join(f"{key}={options[key]}" for key in order)


def set_addresses(options: dict[str, str], nic: dict[str, Any]) -> None:
    """Set the requested addresses and gateways in `options`: the options of `ipconfigN` or of a container's `netN`."""
    if nic.get("mode"):
        _set_address(options, "ip", "gw", _address(nic["mode"], nic.get("ipv4_cidr")), nic.get("ipv4_gateway"))
    if nic.get("ipv6_mode"):
        _set_address(options, "ip6", "gw6", _address(nic["ipv6_mode"], nic.get("ipv6_cidr")), nic.get("ipv6_gateway"))


def _address(mode: str, cidr: Any) -> str:
    """Return the address in Proxmox's notation: `dhcp`, `auto` for `slaac`, or the requested static address."""
    return str(cidr) if mode == "static" else {"slaac": "auto"}.get(str(mode), str(mode))


def _set_address(options: dict[str, str], key: str, gateway_key: str, address: str, gateway: Any) -> None:
    options[key] = address
    options.pop(gateway_key, None)
    if gateway and address not in ("dhcp", "auto"):
        options[gateway_key] = str(gateway)


def login_parameters(facts: dict[str, Any], vm: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters for the login, except `cipassword` (the password), which the caller adds."""
    cloud_init = vm.get("cloud_init") or {}
    public_keys, snippet = ssh_keys(cloud_init.get("ssh_public_keys")), cloud_init.get("vendor_snippet")
    cicustom = None
    if snippet:
        current_parts = [part for part in str(facts["config"].get("cicustom", "")).split(",") if part]
        cicustom = ",".join([*(part for part in current_parts if not part.startswith("vendor=")), f"vendor={snippet}"])
    return {"ciuser": cloud_init.get("user") or None, "sshkeys": "\n".join(public_keys) or None, "cicustom": cicustom}


def ssh_keys(keys: Any) -> list[str]:
    """Return the public keys, one per item, without line ends, empty lines and blanks around a key.

    An item of `keys` may contain several lines. The keys are not URL-encoded here, because the module encodes them.
    """
    return [line.strip() for key in keys or [] for line in re.split(r"[\r\n]+", str(key)) if line.strip()]


def login_problems(vm: dict[str, Any]) -> Iterator[str]:
    """Yield the problems of the requested login of a VM or a container.

    A request for an empty login value is a problem: Proxmox would ignore the empty value and report success.
    """
    cloud_init = vm.get("cloud_init") or {}
    for name in ("user", "password", "ssh_public_keys", "vendor_snippet"):
        if cloud_init.get(name) in ("", []):
            yield f"INVALID_REQUEST: cloud_init.{name} cannot be emptied, only replaced"
    if any("PRIVATE KEY" in str(key) for key in cloud_init.get("ssh_public_keys") or []):
        yield "INVALID_REQUEST: ssh_public_keys contains a private key"
    if not all(map(is_public_key, ssh_keys(cloud_init.get("ssh_public_keys")))):
        reasons = "is not a public key, is cut off, or names a key type that contradicts its key data"
        yield f"INVALID_REQUEST: ssh_public_keys has a line that {reasons}"


def login_and_network_problems(source: dict[str, Any], vm: dict[str, Any]) -> Iterator[str]:
    """Yield the problems of the requested login and network of a VM."""
    cloud_init, network = vm.get("cloud_init") or {}, vm.get("network") or {}
    yield from address_problems(vm)
    yield from login_problems(vm)
    snippet = cloud_init.get("vendor_snippet")
    if snippet and not SNIPPET_VOLUME.fullmatch(str(snippet)):
        yield "INVALID_REQUEST: vendor_snippet is not of the form storage:snippets/file"
    is_dns_requested = bool(network.get("dns_servers") or network.get("search_domains"))
    if (is_dns_requested or has_static_address(vm) or any(cloud_init.values())) and not source["has_cloud_init"]:
        values_text = "login, addresses and name servers"
        yield f"INVALID_REQUEST: VM {source['vmid']} has no cloud-init drive, so {values_text} cannot be set"
