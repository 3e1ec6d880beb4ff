# SPDX-License-Identifier: AGPL-3.0-or-later
"""Simulates the guest agent and the usage counters of running VMs."""

from __future__ import annotations

import re
import time
from typing import Any

from fakepve.model import FakeVm, PveError
from fakepve.server import FakePve

#: Proxmox seconds between the start of a VM and the first answer of its guest agent (see TASK_SECONDS in tasks.py).
GUEST_AGENT_SECONDS = 5


class RunningGuests(FakePve):
    """Answers requests for the guest agent's data and for the usage of VMs."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.without_guest_agent: set[int] = set()  #: VMIDs of guests in which no guest agent runs

    async def _agent_call(self, match: Any, values: dict[str, Any]) -> Any:
        """Answer a guest agent request. Raises a 500 unless the VM's configuration enables the guest agent."""
        vm = self.find(values["node"], values["vmid"])
        enabled = re.search(r"(?:^|enabled=)(\d)", str(vm.config.get("agent", "0")))
        if not enabled or enabled.group(1) != "1":
            raise PveError(500, "No QEMU guest agent configured")
        vm.agent = self._guest_agent_of(vm)
        return await super()._agent_call(match, values)

    def _guest_agent_of(self, vm: FakeVm) -> dict[str, Any] | None:
        """Return what the guest agent reports, or None if no guest agent answers.

        This overrides fakepve's data, because fakepve has none for a clone.
        """
        booting = time.time() < (vm.started_at or 0) + GUEST_AGENT_SECONDS * self.time_scale
        if vm.vmid in self.without_guest_agent or vm.status != "running" or booting:
            return None
        internal = [
            _interface("docker0", "02:42:0a:0b:0c:0d", ["172.17.0.1/16"])
        ]  # the address of a bridge inside the guest, which other hosts cannot reach
        return {
            "interfaces": [_interface("lo", "00:00:00:00:00:00", ["127.0.0.1/8"]), *_guest_interfaces(vm), *internal]
        }

    def _vm_usage(self, vm: FakeVm) -> dict[str, Any]:
        """Return the usage of a VM. Its counters grow while the VM runs, so that computed rates are not zero."""
        usage = dict(super()._vm_usage(vm))
        if vm.status == "running":
            age = time.time() - (vm.started_at or time.time())
            wave = (vm.vmid * 7 + int(age)) % 60
            usage.update(cpu=round(0.02 + wave / 100, 4), mem=int(usage["maxmem"] * (0.2 + wave / 200)))
            usage.update(
                netin=int(age * 2000), netout=int(age * 900), diskread=int(age * 4000), diskwrite=int(age * 7000)
            )
        return usage


def _interface(name: str, mac: str, addresses: list[str]) -> dict[str, Any]:
    ip_addresses = []
    for address in addresses:
        ip, _, prefix = address.partition("/")
        kind = "ipv6" if ":" in ip else "ipv4"
        ip_addresses.append({"ip-address": ip, "ip-address-type": kind, "prefix": int(prefix or 24)})
    return {"name": name, "hardware-address": mac, "ip-addresses": ip_addresses}


def _guest_interfaces(vm: FakeVm) -> list[dict[str, Any]]:
    """Return an interface for each NIC. Its address is from `ipconfigN`, or derived from the VMID if none is set."""
    interfaces = []
    for key in sorted(key for key in vm.config if re.fullmatch(r"net\d+", key)):
        index = int(key[3:])
        mac = re.search(r"=((?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2})", str(vm.config[key]))
        static = re.search(r"ip=(\d[^,]+)", str(vm.config.get(f"ipconfig{index}", "")))
        address = static.group(1) if static else f"10.{100 + index}.{vm.vmid // 250 % 250}.{vm.vmid % 250 + 1}/16"
        hardware = mac.group(1).lower() if mac else "00:00:00:00:00:01"
        interfaces.append(_interface(f"eth{index}", hardware, [address, "fe80::be24:11ff:fe00:1/64"]))
    return interfaces
