"""Finds the privileges that the token needs for a clone because of the template's configuration.

Every clone needs certain privileges. A clone of a template with certain devices, CPU models, CD drives or the option
`vmstatestorage` needs additional privileges.
`smith init` creates the roles that this module names.

Source: qemu-server, `check_mapping_access` in PVE/QemuServer.pm and the checks of `clone_vm` in PVE/API2/Qemu.pm.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from executor.proxmox.privileges import STORAGE_WRITE_PRIVILEGES, PrivilegeNeed
from executor.proxmox.rows import as_text

#: Maps the kind of a device in a VM's configuration to the kind of Proxmox's resource mapping for such devices.
RESOURCE_MAPPING_KINDS = {"hostpci": "pci", "usb": "usb", "virtiofs": "dir"}
_DEVICE = re.compile(r"(hostpci|usb|virtiofs|rng)[0-9]+")
_DRIVE = re.compile(r"(ide|sata|scsi)[0-9]+")
_CUSTOM_CPU = re.compile(r"(?:^|,)(?:cputype=)?custom-([A-Za-z0-9_.-]+)")


def privilege_needs_of_template(config: Mapping[str, Any]) -> list[PrivilegeNeed]:
    """Return the privileges for a clone of the template with this configuration.

    The privileges that every clone needs are not included.
    """
    needs = {need.path: need for key in config for need in _needs_of_option(key, as_text(config[key]))}
    return list(needs.values())


def root_only_devices(config: Mapping[str, Any]) -> list[str]:
    """Return the configuration keys that pass a device of the host to the VM without a resource mapping.

    If there is such a device, only root@pam may clone the template.
    """
    return sorted(
        key
        for key in config
        if (match := _DEVICE.fullmatch(key))
        and match[1] in ("hostpci", "usb")
        and _lacks_resource_mapping(as_text(config[key]))
    )


def host_cd_drives(config: Mapping[str, Any]) -> list[str]:
    """Return the keys of the CD drives that use the host's drive. To clone them, the token needs Sys.Console on `/`."""
    return sorted(key for key in config if _is_host_cd_drive(key, as_text(config[key])))


def _is_host_cd_drive(key: str, value: str) -> bool:
    return bool(_DRIVE.fullmatch(key)) and value.partition(",")[0] == "cdrom"


def _needs_of_option(key: str, value: str) -> Iterator[PrivilegeNeed]:
    if match := _DEVICE.fullmatch(key):
        yield from _needs_of_device(match[1], _parse_options(value))
    elif key == "cpu" and (cpu := _CUSTOM_CPU.search(value)):
        yield _resource_mapping_need(f"cpu/{cpu[1]}")
    elif _is_host_cd_drive(key, value):
        purpose = f"to clone the template's physical CD drive {key}"
        yield PrivilegeNeed(path="/", role="SmithConsole", privileges=frozenset({"Sys.Console"}), purpose=purpose)
    elif key == "vmstatestorage" and value:
        purpose = "because the template's option vmstatestorage names this storage"
        path = f"/storage/{value}"
        yield PrivilegeNeed(path=path, role="SmithStore", privileges=STORAGE_WRITE_PRIVILEGES, purpose=purpose)


def _needs_of_device(kind: str, options: dict[str, str]) -> Iterator[PrivilegeNeed]:
    if kind == "rng":
        # The key '' has the value of the option that is written without a name.
        if "/dev/hwrng" in (options.get("source"), options.get("")):
            yield _resource_mapping_need("hwrng")
        return
    name = options.get("dirid") or options.get("") if kind == "virtiofs" else options.get("mapping")
    if name:
        yield _resource_mapping_need(f"{RESOURCE_MAPPING_KINDS[kind]}/{name}")


def _resource_mapping_need(mapping_path: str) -> PrivilegeNeed:
    purpose = (
        "to clone the template's device" if not mapping_path.startswith("cpu/") else "to clone the template's CPU model"
    )
    privileges = frozenset({"Mapping.Use"})
    return PrivilegeNeed(path=f"/mapping/{mapping_path}", role="SmithMapping", privileges=privileges, purpose=purpose)


def _lacks_resource_mapping(value: str) -> bool:
    """Return whether the value passes a device of the host to the VM without a resource mapping."""
    options = _parse_options(value)
    host = options.get("host") or options.get("")
    return bool(host) and host != "spice"  # with `spice`, the USB device is at the SPICE client, not at the host


def _parse_options(value: str) -> dict[str, str]:
    """Return the options in a value of a configuration. An option without a name gets the name ''."""
    parts = [part.partition("=") for part in value.split(",") if part]
    return {name if equals else "": text if equals else name for name, equals, text in parts}
