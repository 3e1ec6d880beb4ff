# SPDX-License-Identifier: AGPL-3.0-or-later
"""Implements the verbs of the control port that change VMs and containers.

The control port is a port through which tests and the demo change the simulated cluster. A verb is the name of a
change, such as `lock`.
"""

from __future__ import annotations

import time
from typing import Any

from fakepve.model import FakeVm

from smith_lab.proxmox.fakepve_server.cluster import Cluster
from smith_lab.proxmox.fakepve_server.seed import add_template


class GuestVerbs:
    """Implements POST /<verb> by the method `do_<verb>`, whose parameters are the members of the request's JSON."""

    cluster: Cluster  #: set by the subclass ControlPort

    def _find_guest(self, vmid: int) -> FakeVm:
        """Return the VM or container with this VMID. Raises KeyError if there is none."""
        guest = self.cluster.vm(vmid) or self.cluster.ct(vmid)
        if guest is None:
            raise KeyError(f"no VM or container {vmid}")
        return guest

    def do_lock(self, vmid: int, lock: str | None) -> None:
        """Set the lock of a VM or container (backup, clone, migrate, ...), or clear it if `lock` is null."""
        self.cluster._qm_lock(self._find_guest(vmid), lock)

    def do_remove(self, vmid: int) -> None:
        """Remove a VM or container with its volumes at once, without a Proxmox task."""
        self.cluster._remove_guest(self._find_guest(vmid))

    def do_add(
        self,
        vmid: int,
        name: str,
        node: str = "pve1",
        status: str = "stopped",
        config: dict[str, Any] | None = None,
        *,
        copies: int = 1,
    ) -> None:
        """Add a VM that Agent Smith did not create. `copies` is the number of VMs to add, on consecutive VMIDs."""
        for new_vmid in range(vmid, vmid + copies):
            self.cluster.add_vm(new_vmid, name, node=node, status=status, config=dict(config or {}))

    def do_add_volume(self, storage: str, volume: str, vmid: int, size: int) -> None:
        """Add a volume of a guest to a storage.

        `volume` is the volume's name without the storage, such as `vm-100-disk-1`. `size` is in bytes.
        """
        values = {"content": "images", "format": "raw", "size": size, "vmid": vmid, "ctime": int(time.time())}
        self.cluster.storages[storage].setdefault("volumes", {})[volume] = values

    def do_remove_volume(self, storage: str, volume: str) -> None:
        """Remove a volume from a storage, as an operator does by `pvesm free`."""
        del self.cluster.storages[storage]["volumes"][volume]

    def do_add_container(
        self, vmid: int, name: str, node: str = "pve1", status: str = "stopped", config: dict[str, Any] | None = None
    ) -> None:
        """Add a container that Agent Smith did not create."""
        self.cluster.add_ct(vmid, name, node=node, status=status, config=config or {})

    def do_add_template(self, vmid: int, name: str, node: str, disk_gib: int = 8, storage: str = "local-lvm") -> None:
        """Add a VM template."""
        add_template(self.cluster, vmid, name, node=node, disk_gib=disk_gib, storage=storage)

    def do_recycle(self, vmid: int, name: str = "other-vm") -> None:
        """Replace the VM with this VMID by a running VM that Agent Smith did not create.

        This is the state after another client deleted the VM and used its VMID for a new VM.
        """
        old_vm = self.cluster.vm(vmid)
        node = old_vm.node if old_vm else "pve1"
        if old_vm:
            self.cluster.vms.remove(old_vm)
        self.cluster.add_vm(vmid, name, node=node, status="running", config={"cores": 1, "memory": "512"})

    def do_rename(self, vmid: int, name: str) -> None:
        """Rename a VM, as an operator does in the web interface."""
        guest = self._find_guest(vmid)
        guest.name = guest.config["name"] = name

    def do_configure(self, vmid: int, values: dict[str, Any]) -> None:
        """Change the configuration of a guest. A null value removes the key.

        Each value is in effect at once, also a value that Proxmox would apply only at the guest's next start.
        """
        guest = self._find_guest(vmid)
        for key, value in values.items():
            if value is None:
                guest.config.pop(key, None)
            else:
                guest.config[key] = value

    def do_protect(self, vmid: int, protection: bool) -> None:
        """Set or clear the protection flag of a guest."""
        self.do_configure(vmid, {"protection": 1 if protection else None})

    def do_power(self, vmid: int, status: str) -> None:
        """Start or stop a VM at once, without a Proxmox task."""
        guest = self._find_guest(vmid)
        guest.status = guest.qmpstatus = status
        guest.started_at = time.time() if status == "running" else None

    def do_add_task(self, vmid: int, type: str, exitstatus: str = "OK", user: str = "", node: str = "") -> str:
        """Add an ended Proxmox task of a guest, as if `user` (by default the first API token) had started it.

        `node` is needed only for a guest that does not exist any more.
        """
        node, user = node or self._find_guest(vmid).node, user or next(iter(self.cluster.apitokens))
        upid, pid, start = self.cluster._upid(node, type, vmid, user)
        # `pstart` is the start time of the process `pid`. fakepve, the library that simulates the Proxmox API, writes
        # `pid * 7` in the UPID.
        task = {"upid": upid, "node": node, "pid": pid, "pstart": pid * 7, "starttime": start, "endtime": start}
        task |= {"type": type, "id": str(vmid), "user": user, "status": "stopped", "exitstatus": exitstatus, "log": []}
        self.cluster.tasks[upid] = task
        self.cluster.tasklog.append(task)
        return str(upid)

    def do_move(self, vmid: int, node: str) -> None:
        """Move a VM to another node, as if an operator or HA had migrated it."""
        self._find_guest(vmid).node = node

    def do_behave(self, vmid: int, **attributes: Any) -> None:
        """Set how a guest behaves.

        The attribute `agent` sets whether a guest agent runs. `keeps_devices` sets whether the running guest refuses to
        release a device. All other attributes are attributes of fakepve's class FakeVm: `acpi` (whether the guest obeys
        a shutdown by ACPI), `shutdown_secs`, `start_secs` and `stop_secs` (how many seconds of simulated time these
        operations take), `start_error` (the error text of each start; None: it succeeds), `ha_state` (None: HA does not
        manage the guest) and `agent_hangs` (the guest agent runs, but does not answer).
        """
        guest = self._find_guest(vmid)
        if "agent" in attributes:
            if attributes.pop("agent"):
                self.cluster.vmids_without_guest_agent.discard(vmid)
            else:
                self.cluster.vmids_without_guest_agent.add(vmid)
        if "keeps_devices" in attributes:
            vmids = self.cluster.vmids_without_hot_unplug
            (vmids.add if attributes.pop("keeps_devices") else vmids.discard)(vmid)
        for key, value in attributes.items():
            if not hasattr(guest, key):
                raise ValueError(f"no such attribute: {key}")
            setattr(guest, key, value)
