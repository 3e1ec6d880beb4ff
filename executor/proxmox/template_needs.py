"""Finds what a clone of a template needs besides the usual privileges: devices, CD drives and a storage for states.

Source: qemu-server PVE/API2/Qemu.pm and PVE/QemuServer.pm, `check_mapping_access` and the checks of a clone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from executor.proxmox.privileges import STORAGE_WRITE_PRIVILEGES, PrivilegeNeed
from executor.proxmox.rows import as_text

#: The kind of mapping of each kind of device.
MAPPINGS = {"hostpci": "pci", "usb": "usb", "virtiofs": "dir"}
_DEVICE = re.compile(r"(hostpci|usb|virtiofs|rng)[0-9]+")
_DRIVE = re.compile(r"(ide|sata|scsi)[0-9]+")
_CUSTOM_CPU = re.compile(r"(?:^|,)(?:cputype=)?custom-([A-Za-z0-9_.-]+)")


def needs_of_template(config: Mapping[str, Any]) -> list[PrivilegeNeed]:
    """Return the privileges that a clone of the template with this configuration needs besides those of every clone."""
    needs = {need.path: need for key in config for need in _needs_of_value(key, as_text(config[key]))}
    return list(needs.values())


def devices_for_root(config: Mapping[str, Any]) -> list[str]:
    """Return the keys of the devices because of which only root@pam may clone the template: they have no mapping."""
    return sorted(
        key
        for key in config
        if (found := _DEVICE.fullmatch(key)) and found[1] in ("hostpci", "usb") and _is_raw(as_text(config[key]))
    )


def host_cd_drives(config: Mapping[str, Any]) -> list[str]:
    """Return the keys of the CD drives that pass the host's own drive. Their clones need Sys.Console on `/`."""
    return sorted(key for key in config if _is_host_cd_drive(key, as_text(config[key])))


def _is_host_cd_drive(key: str, value: str) -> bool:
    return bool(_DRIVE.fullmatch(key)) and value.partition(",")[0] == "cdrom"


def _needs_of_value(key: str, value: str) -> Iterator[PrivilegeNeed]:
    if found := _DEVICE.fullmatch(key):
        yield from _needs_of_device(found[1], _options(value))
    elif key == "cpu" and (cpu := _CUSTOM_CPU.search(value)):
        yield _mapping_need(f"cpu/{cpu[1]}")
    elif _is_host_cd_drive(key, value):
        purpose = f"to clone the template's physical CD drive {key}"
        yield PrivilegeNeed(path="/", role="SmithConsole", privileges=frozenset({"Sys.Console"}), purpose=purpose)
    elif key == "vmstatestorage" and value:
        purpose = "because the template's saved states are there"
        path = f"/storage/{value}"
        yield PrivilegeNeed(path=path, role="SmithStore", privileges=STORAGE_WRITE_PRIVILEGES, purpose=purpose)


def _needs_of_device(kind: str, options: dict[str, str]) -> Iterator[PrivilegeNeed]:
    if kind == "rng":
        if "/dev/hwrng" in (options.get("source"), options.get("")):
            yield _mapping_need("hwrng")
        return
    name = options.get("dirid") or options.get("") if kind == "virtiofs" else options.get("mapping")
    if name:
        yield _mapping_need(f"{MAPPINGS[kind]}/{name}")


def _mapping_need(mapping: str) -> PrivilegeNeed:
    purpose = (
        "to clone the template's device" if not mapping.startswith("cpu/") else "to clone the template's CPU model"
    )
    use = frozenset({"Mapping.Use"})
    return PrivilegeNeed(path=f"/mapping/{mapping}", role="SmithMapping", privileges=use, purpose=purpose)


def _is_raw(value: str) -> bool:
    """Return whether a device of the host is passed without a mapping. Only root@pam may do that."""
    options = _options(value)
    host = options.get("host") or options.get("")
    return bool(host) and host != "spice"


def _options(value: str) -> dict[str, str]:
    """Return the options in a value of a configuration. The first may have no name: then its name is ''."""
    parts = [part.partition("=") for part in value.split(",") if part]
    return {name if equals else "": text if equals else name for name, equals, text in parts}
