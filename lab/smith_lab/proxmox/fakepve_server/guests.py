# SPDX-License-Identifier: AGPL-3.0-or-later
"""Simulates the guest agent and the usage counters of running VMs."""

from __future__ import annotations

import re
import time
from typing import Any

from fakepve.model import FakeVm, PveError
from fakepve.server import FakePve

#: Seconds of simulated Proxmox time between the start of a VM and the first answer of its guest agent. A simulated
#: second is `time_scale` real seconds.
GUEST_AGENT_START_SECONDS = 5
#: By how many bytes each usage counter of a running VM grows in a real second.
BYTES_PER_SECOND = {"netin": 2000, "netout": 900, "diskread": 4000, "diskwrite": 7000}
#: The requests that Proxmox answers with the states of VMs, or with the state of one VM.
VM_STATE_PATHS = ("/nodes/{node}/qemu", "/nodes/{node}/qemu/{vmid}/status/current")


class GuestAgentAndUsage(FakePve):
    """Answers requests for the guest agent's data and for the usage of VMs.

    fakepve is the simulation of Proxmox that this package extends.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vmids_without_guest_agent: set[int] = set()  #: VMIDs of VMs in which no guest agent runs

    async def _agent_call(self, match: Any, values: dict[str, Any]) -> Any:
        """Answer a guest agent request.

        Raises PveError if the VM is not running, or if its configuration does not enable the guest agent.
        `match` is the entry for the request's path in the schema of Proxmox's API.
        """
        vm = self.find(values["node"], values["vmid"])
        if vm.status != "running":
            raise PveError(500, f"VM {vm.vmid} is not running")
        # Matches the flag `enabled` in both forms of the value: `1,fstrim_cloned_disks=1` and `enabled=1`.
        flag_match = re.search(r"(?:^|enabled=)(\d)", str(vm.config.get("agent", "0")))
        if not flag_match or flag_match.group(1) != "1":
            raise PveError(500, "No QEMU guest agent configured")
        vm.agent = self._guest_agent_data(vm)  # fakepve answers with this data
        return await super()._agent_call(match, values)

    def _guest_agent_data(self, vm: FakeVm) -> dict[str, Any] | None:
        """Return the data that the guest agent reports, or None if no guest agent answers."""
        guest_agent_starts_at = (vm.started_at or 0) + GUEST_AGENT_START_SECONDS * self.time_scale
        is_booting = time.time() < guest_agent_starts_at
        if vm.vmid in self.vmids_without_guest_agent or vm.status != "running" or is_booting:
            return None
        loopback = _make_interface("lo", "00:00:00:00:00:00", ["127.0.0.1/8"])
        # A bridge inside the guest. Other hosts cannot reach its address.
        inner_bridge = _make_interface("docker0", "02:42:0a:0b:0c:0d", ["172.17.0.1/16"])
        return {"interfaces": [loopback, *_make_guest_interfaces(vm), inner_bridge]}

    def _vm_usage(self, vm: FakeVm) -> dict[str, Any]:
        """Return the usage of a VM.

        While the VM runs, its counters grow. So the rates that the executor computes from the counters are not zero.
        The use of CPU and memory changes every second.
        """
        usage = dict(super()._vm_usage(vm))
        if vm.status == "running":
            uptime_s = time.time() - (vm.started_at or time.time())
            load = (vm.vmid * 7 + int(uptime_s)) % 60  # from 0 to 59, and different for VMs with neighbouring VMIDs
            usage.update(cpu=round(0.02 + load / 100, 4), mem=int(usage["maxmem"] * (0.2 + load / 200)))
            for counter, bytes_per_second in BYTES_PER_SECOND.items():
                usage[counter] = int(uptime_s * bytes_per_second)
        if self.version.startswith("8."):
            del usage["memhost"]  # Proxmox VE 8 does not send this member
        return usage

    def _complete(self, path: str, answer: Any, **values: Any) -> Any:
        """Return the answer with the members that fakepve adds to it from the schema of Proxmox's API.

        If Proxmox VE 8 is simulated, `memhost` is removed from the states of VMs: Proxmox VE 8 does not send it.
        """
        completed = super()._complete(path, answer, **values)
        if path in VM_STATE_PATHS and self.version.startswith("8."):
            for row in completed if isinstance(completed, list) else [completed]:
                row.pop("memhost", None)
        return completed


def _make_interface(name: str, mac: str, addresses: list[str]) -> dict[str, Any]:
    ip_addresses = []
    for address in addresses:
        ip, _, prefix = address.partition("/")
        address_type = "ipv6" if ":" in ip else "ipv4"
        ip_addresses.append({"ip-address": ip, "ip-address-type": address_type, "prefix": int(prefix or 24)})
    return {"name": name, "hardware-address": mac, "ip-addresses": ip_addresses}


def _make_guest_interfaces(vm: FakeVm) -> list[dict[str, Any]]:
    """Return an interface for each NIC of a VM.

    The address of the interface is the static address in `ipconfigN`. If there is none, the VMID determines the
    address.
    """
    interfaces = []
    for key in sorted(key for key in vm.config if re.fullmatch(r"net\d+", key)):
        index = int(key.removeprefix("net"))
        # Matches the MAC address in a NIC such as `virtio=BC:24:11:00:00:01,bridge=vmbr0`.
        mac_match = re.search(r"=((?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2})", str(vm.config[key]))
        mac = mac_match.group(1).lower() if mac_match else "00:00:00:00:00:01"
        # Matches the address in `ip=10.0.0.5/24,gw=10.0.0.1`, but not in `ip=dhcp`.
        address_match = re.search(r"ip=(\d[^,]+)", str(vm.config.get(f"ipconfig{index}", "")))
        derived_address = f"10.{100 + index}.{vm.vmid // 250 % 250}.{vm.vmid % 250 + 1}/16"
        address = address_match.group(1) if address_match else derived_address
        interfaces.append(_make_interface(f"eth{index}", mac, [address, "fe80::be24:11ff:fe00:1/64"]))
    return interfaces
