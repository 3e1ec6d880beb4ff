# SPDX-License-Identifier: AGPL-3.0-or-later
"""Refuses changes of a guest's configuration as Proxmox does. The checks are made in the same order as in Proxmox.

Sources: qemu-server: PVE/API2/Qemu.pm; pve-container: PVE/LXC/Config.pm.
"""

from __future__ import annotations

import base64
import binascii
import re
import urllib.parse
from typing import Any

from fakepve import schema as pve_schema
from fakepve.model import FakeVm, PveError
from fakepve.qemu import volume_ref
from fakepve.routing import die, param_error, split_list

from smith_lab.proxmox.fakepve_server.configuration import ConfigurationChanges

CONFIG_PATH = "/nodes/{node}/qemu/{vmid}/config"
#: Options that only root@pam may set.
ROOT_OPTIONS = ("lock", "args")
#: Matches the beginning of the names of some CPU models that Proxmox knows.
CPU_MODEL = re.compile(
    r"custom-|host$|max$|kvm(32|64)$|qemu(32|64)$|x86-64-v[234]|486$|pentium|coreduo|core2duo|athlon|phenom|Opteron|EPYC"
    r"|Penryn|Conroe|Nehalem|Westmere|SandyBridge|IvyBridge|Haswell|Broadwell|Skylake|Cascadelake|Cooperlake|Icelake"
    r"|KnightsMill|SapphireRapids|GraniteRapids|SierraForest|ClearwaterForest|Denverton|Snowridge|YongFeng|cortex|neoverse"
)


class ConfigChangeChecks(ConfigurationChanges):
    """Checks a change of a configuration before the change is applied.

    fakepve is the simulation of Proxmox that this package extends. Its functions
    `die` and `param_error` make the exception for an error answer.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vmids_without_hot_unplug: set[int] = set()  #: guests from which no device can be unplugged

    async def _apply_config(self, vm: FakeVm, user: str, changes: dict[str, Any]) -> None:
        """Change the configuration. Raises PveError if Proxmox would refuse the change.

        If a running VM does not release a device, the change of this device stays pending. All other changes are made.
        Then PveError is raised.
        """
        updates = dict(changes)
        require_valid_ssh_keys(updates.get("sshkeys"))
        reverted_options = split_list(updates.pop("revert", None))
        for name, options in (("revert", reverted_options), ("delete", split_list(updates.get("delete")))):
            for option in options:
                if not option_exists(option):
                    raise param_error(**{name: f"unknown option '{option}'"})
        self._check_values(vm, user, updates)
        if "startup" in {*updates, *split_list(updates.get("delete"))}:
            self.require(user, "/", "Sys.Modify")  # `startup` is the order in which a node starts its guests
        for option in reverted_options:
            vm.pending.pop(option, None)
        unreleased_devices = self._take_unreleased_devices(vm, updates)
        await super()._apply_config(vm, user, updates)
        if unreleased_devices:
            vm.pending.update(unreleased_devices)
            text = "hotplug problem - error on hot-unplugging device '{}' - still busy in guest?"
            raise param_error(**{option: text.format(option) for option in unreleased_devices})

    def _apply(self, ct: Any, selection: Any = None, running: bool = False) -> None:
        """Apply the pending values of a container, except the values of NICs that the container does not release.

        `selection` contains the keys to apply; None: all.
        """
        if not running or ct.vmid not in self.vmids_without_hot_unplug:
            super()._apply(ct, selection, running)
            return
        unreleased_nics = [option for option in ct.pending if re.match(r"net\d+$", option) and option in ct.config]
        super()._apply(ct, set(selection or ct.pending) - set(unreleased_nics), running)
        if unreleased_nics:
            text = "unable to hotplug {}: command 'ip link set dev veth301i0p name eth0' failed: exit code 2"
            raise param_error(**{option: text.format(option) for option in unreleased_nics})

    def _check_values(self, vm: FakeVm, user: str, updates: dict[str, Any]) -> None:
        cpu = str(updates.get("cpu") or "host").removeprefix("cputype=").partition(",")[0]
        if not CPU_MODEL.match(cpu):
            cause = f"Built-in cputype '{cpu}' is not defined (missing 'custom-' prefix?)"
            raise param_error(cpu=f"invalid format - {cause}")
        self._check_hookscript(updates.get("hookscript"))
        for option in [*updates, *split_list(updates.get("delete"))]:
            if option in ROOT_OPTIONS and user != "root@pam":
                raise die(f"only root can set '{option}' config")
        if user != "root@pam":
            _refuse_devices_of_the_host(updates)
        self._check_lock(vm)
        _check_balloon(vm, updates)

    def _check_hookscript(self, volume: str | None) -> None:
        storage, name = volume_ref(str(volume or ""))
        if volume and name not in self.storages.get(storage or "", {}).get("volumes", {}):
            raise param_error(hookscript=f"script '{volume}' does not exist")

    def _take_unreleased_devices(self, vm: FakeVm, updates: dict[str, Any]) -> dict[str, Any]:
        """Remove from `updates` the changes of devices that a running VM does not release, and return these changes.

        The keys of the result are the devices. The values are their new configuration; None: the device is deleted. A
        change of a NIC's model or MAC address is included, because the VM would have to release the old NIC.
        """
        if vm.status != "running" or vm.vmid not in self.vmids_without_hot_unplug:
            return {}
        deleted = split_list(updates.get("delete"))
        deleted_devices = [
            option for option in deleted if re.match(r"(net|scsi|virtio|sata)\d+$", option) and option in vm.config
        ]
        updates["delete"] = ",".join(option for option in deleted if option not in deleted_devices)
        nics = [option for option in updates if re.match(r"net\d+$", option) and option in vm.config]
        replaced_nics = [
            option for option in nics if str(updates[option]).split(",")[0] != vm.config[option].split(",")[0]
        ]
        return {**dict.fromkeys(deleted_devices), **{option: updates.pop(option) for option in replaced_nics}}


def _refuse_devices_of_the_host(updates: dict[str, Any]) -> None:
    """Raise PveError if a value names a device of the host directly. Only root@pam may do this.

    Other callers may name such a device by a resource mapping.
    """
    for option, value in updates.items():
        kind, device = option.rstrip("0123456789"), str(value).partition(",")[0].removeprefix("host=")
        if kind == "parallel":
            raise die(f"only root can set '{option}' config")
        if (kind == "serial" and device != "socket") or (
            kind == "usb" and device.lower() != "spice" and not device.startswith("mapping=")
        ):
            raise die(f"only root can set '{option}' config for real devices")
        if kind == "hostpci" and not device.startswith("mapping="):
            raise die(f"only root can set '{option}' config for non-mapped devices")


def _check_balloon(vm: FakeVm, updates: dict[str, Any]) -> None:
    new_config = {**vm.config, **{key: value for key, value in vm.pending.items() if value is not None}, **updates}
    memory_mib = int(str(new_config.get("memory") or 512).removeprefix("current="))
    if ("memory" in updates or "balloon" in updates) and int(new_config.get("balloon") or 0) > memory_mib:
        raise die("balloon value too large (must be smaller than assigned memory)")


def option_exists(option: str) -> bool:
    """Return whether a VM's configuration may have this option."""
    names = pve_schema.load().paths[CONFIG_PATH]["PUT"]["parameters"]["properties"]
    return option in names or f"{option.rstrip('0123456789')}[n]" in names


def require_valid_ssh_keys(encoded: str | None) -> None:
    """Raise PveError if `ssh-keygen -l` would refuse one of the keys (pve-common: PVE/Tools.pm)."""
    for line in urllib.parse.unquote(encoded or "").split("\n"):
        if line.strip() and not is_ssh_key(line):
            raise PveError(500, "SSH public key validation error")


def is_ssh_key(line: str) -> bool:
    """Return whether a line contains a key type, followed by the complete data of a key of this type."""
    match = re.search(r"(?:^|\s)((?:sk-)?(?:ssh|ecdsa)-[\w@.-]+) +([A-Za-z0-9+/]+=*)(?:\s|$)", line)
    if not match:
        return False
    try:
        fields = _split_key_data(base64.b64decode(match.group(2), validate=True))
    except (binascii.Error, ValueError):
        return False
    is_complete = len(fields) > 1 and (match.group(1) != "ssh-ed25519" or len(fields[1]) == 32)
    return is_complete and fields[0] == match.group(1).encode()


def _split_key_data(data: bytes) -> list[bytes]:
    """Return the fields of a key. In the data, each field follows its length (4 bytes).

    Raises ValueError if the data end before the end of a field.
    """
    fields = []
    while data:
        size = int.from_bytes(data[:4], "big")
        if len(data) < 4 + size:
            raise ValueError("the key is cut off")
        fields.append(data[4 : 4 + size])
        data = data[4 + size :]
    return fields
