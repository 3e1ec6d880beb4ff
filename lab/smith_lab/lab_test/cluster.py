"""Reads and changes the Proxmox cluster of the lab: reads guests, writes leases, and removes guests and backups.

The lab is a Proxmox cluster for tests. A lease is a stopped VM without a disk, which reserves a range of VMIDs for one
run of lab tests. This module changes the cluster by requests to Proxmox, not with playbooks.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import requests
from proxmoxer import ProxmoxAPI, ResourceException

from executor.errors import JobError, SmithError
from executor.model import GuestKind
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.connection import ProxmoxConnection
from executor.proxmox.rows import ArchiveRow, VmRow
from executor.shared.error_codes import ErrorCode
from smith_lab.lab_test.lab_settings import LabSettings

REQUEST_TIMEOUT_S = 60
#: Maximum wait for the end of a Proxmox task, such as the removal of a guest.
PROXMOX_TASK_TIMEOUT_S = 300
TASK_POLL_INTERVAL_S = 0.2
GIB = 1024**3
#: The keys of disks and drives in a VM's configuration.
_DISK_KEY = re.compile(r"(?:scsi|virtio|sata|ide|efidisk|tpmstate|unused)\d+")
#: The values of a CD drive that contains no disk of the VM: an empty drive, and the drive of the host.
_VALUES_WITHOUT_DISK = ("none", "cdrom")
#: Matches the name of a lease: the name prefix of a lab, six hexadecimal digits that identify a run of lab tests, and
#: `lease`.
_LEASE_NAME = re.compile(r".+-[0-9a-f]{6}-lease")


class LabError(SmithError):
    """An operation in the lab failed: for example, Proxmox refused a request, or a Proxmox task failed."""


class ConcurrentChange(LabError):
    """Another client has created, changed or removed the VM before this request."""


class NoAnswer(LabError):
    """Proxmox did not answer. It may nevertheless have executed the request."""


@dataclass(frozen=True, kw_only=True)
class Guest:
    """A guest of the lab's cluster, as Proxmox describes it.

    The guest has one of the lab's VMIDs (LAB_PROXMOX_VMID_MIN to LAB_PROXMOX_VMID_MAX), or the name of a lease. A lease
    may have another VMID, because another run of lab tests may have other values of these two settings.
    """

    vmid: int
    node: str
    kind: str
    name: str = ""
    notes: str = ""
    lock: str = ""
    digest: str = ""  #: Proxmox's digest of the configuration
    is_template: bool = False
    is_protected: bool = False
    #: True for a VM that has the name of a lease, but runs or has a disk, so it is not a lease.
    is_named_as_lease_but_in_use: bool = False
    problem: str = ""  #: why the configuration cannot be read; if set, only VMID, node, kind and lock are known


class LabCluster:
    """Sends requests to the lab's Proxmox cluster."""

    def __init__(self, lab: LabSettings) -> None:
        # `executor_settings()` returns the settings with which an executor would work in this lab.
        connection = ProxmoxConnection.from_settings(lab.executor_settings())
        self.lab_settings = lab  #: the settings of the lab
        # Only the method `now()` uses the session, because it reads a header of the answer. `proxmox_reader` and
        # `api` return only the body.
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.verify = connection.verify if isinstance(connection.verify, bool) else str(connection.verify)
        login = f"{connection.user}!{connection.token_id}={connection.token_secret}"
        self.session.headers["Authorization"] = f"PVEAPIToken={login}"
        # Reads lists and configurations. Its names say "VM" for every guest: `vms()` also returns containers.
        self.proxmox_reader = ProxmoxReader(connection, timeout_s=REQUEST_TIMEOUT_S)
        # Changes the cluster, and reads the status of guests and Proxmox tasks.
        self.api = ProxmoxAPI(
            connection.host,
            port=connection.port,
            user=connection.user,
            token_name=connection.token_id,
            token_value=connection.token_secret,
            verify_ssl=self.session.verify,
            timeout=REQUEST_TIMEOUT_S,
        )

    # --- reading ---

    def now(self) -> float:
        """Return the time of the lab's Proxmox, in seconds since 1970.

        All runs that share the lab compare the expiry of leases with this clock, not with the clocks of their machines.

        Raises NoAnswer.
        """
        answer = _send(
            lambda: self.session.get(f"{self.lab_settings.url}/api2/json/version", timeout=REQUEST_TIMEOUT_S)
        )
        try:
            return parsedate_to_datetime(answer.headers["Date"]).timestamp()
        except (KeyError, TypeError, ValueError) as exc:
            raise NoAnswer("Proxmox's answer has no valid Date header") from exc

    def guests(self, vmids: range) -> list[Guest]:
        """Return the guests with these VMIDs, sorted by VMID. The configuration of each guest is read."""
        rows = sorted((row for row in self.proxmox_reader.vms() if row.vmid in vmids), key=lambda row: row.vmid)
        return [guest for row in rows if (guest := self._read_guest(row)) is not None]

    def guest(self, vmid: int) -> Guest | None:
        """Return the guest with this VMID; None if no guest has it."""
        return next(iter(self.guests(range(vmid, vmid + 1))), None)

    def template_disk_gib(self, template_vmid: int) -> int:
        """Return the size of a template's first disk in GiB, rounded up.

        Raises LabError if the list of guests does not contain the template.
        """
        row = next((row for row in self.proxmox_reader.vms() if row.vmid == template_vmid), None)
        if row is None:
            raise LabError(f"the template {template_vmid} does not exist, or the token may not see it")
        return -(-row.max_disk_bytes // GIB)

    def guests_and_all_lease_vms(self, vmids: range) -> list[Guest]:
        """Return the guests with these VMIDs, and all other VMs of the cluster that have the name of a lease.

        A lease whose own VMID is not in `vmids` can reserve VMIDs that are in `vmids`.

        In Proxmox's list of guests, a new VM has no statistics and no name yet. So the configuration of each guest
        without statistics is read, too.
        """
        rows = [
            row
            for row in sorted(self.proxmox_reader.vms(), key=lambda row: row.vmid)
            if row.vmid in vmids or not row.has_statistics or _LEASE_NAME.fullmatch(row.name)
        ]
        guests = [guest for row in rows if (guest := self._read_guest(row)) is not None]
        return [guest for guest in guests if guest.vmid in vmids or _LEASE_NAME.fullmatch(guest.name)]

    def archives(self) -> list[ArchiveRow]:
        """Return the backup archives on the lab's backup storage; an empty list if the lab has no such storage."""
        return (
            self.proxmox_reader.archives(self.lab_settings.node, self.lab_settings.backup_storage)
            if self.lab_settings.backup_storage
            else []
        )

    def _read_guest(self, row: VmRow) -> Guest | None:
        """Return the guest of a row in Proxmox's list; None if the guest was moved or removed after the list was read.

        If the guest's configuration cannot be read, the guest is returned with a `problem`. So the caller can process
        the other guests.
        """
        try:
            config = self.proxmox_reader.vm_config(row.node, row.vmid, kind=row.kind)
            name = str(config.get("hostname" if row.kind == GuestKind.LXC else "name") or "")
            has_lease_name = bool(_LEASE_NAME.fullmatch(name))
            is_named_as_lease_but_in_use = has_lease_name and (_has_disk(config) or self._is_running(row))
        except (JobError, LabError) as error:
            if isinstance(error, ConcurrentChange) or getattr(error, "code", None) is ErrorCode.PVE_CONFLICT:
                return None  # moved or removed (PVE_CONFLICT: the guest is not on the node of its row)
            return Guest(vmid=row.vmid, node=row.node, kind=row.kind, lock=row.lock, problem=str(error))
        return Guest(
            vmid=row.vmid,
            node=row.node,
            kind=row.kind,
            name=name,
            notes=str(config.get("description") or ""),
            lock=str(config.get("lock") or row.lock),
            digest=str(config.get("digest") or ""),
            is_template=str(config.get("template")) == "1",
            is_protected=str(config.get("protection")) == "1",
            is_named_as_lease_but_in_use=is_named_as_lease_but_in_use,
        )

    def _is_running(self, row: VmRow) -> bool:
        """Ask Proxmox whether a VM runs. The status in the list of guests may be outdated. Raises ConcurrentChange."""
        try:
            status = _send(getattr(self.api.nodes(row.node), row.kind)(row.vmid).status.current.get)
        except LabError as error:
            if "does not exist" in str(error):
                raise ConcurrentChange(str(error)) from error
            raise
        return str(status.get("status")) != "stopped"

    # --- changes ---

    def create_stopped_vm(self, vmid: int, name: str, notes: str) -> None:
        """Create a VM without disks, and do not start it. Raises ConcurrentChange if the VMID is in use."""
        node = self.api.nodes(self.lab_settings.node)
        try:
            upid = _send(lambda: node.qemu.post(vmid=vmid, name=name, description=notes))
        except LabError as error:
            if "already exists" in str(error):
                raise ConcurrentChange(str(error)) from error
            raise
        self.wait_for_task(self.lab_settings.node, upid)

    def replace_name_and_notes(self, guest: Guest, name: str, notes: str) -> None:
        """Replace the name and notes of a VM by one request. Raises ConcurrentChange if the VM differs from `guest`."""
        config = self.api.nodes(guest.node).qemu(guest.vmid).config
        try:
            _send(lambda: config.put(name=name, description=notes, digest=guest.digest))
        except LabError as error:
            # If the digest differs, Proxmox answers "checksum missmatch" or, in other versions, "checksum mismatch".
            if "checksum mis" in str(error) or "does not exist" in str(error):
                raise ConcurrentChange(str(error)) from error
            raise

    def remove_without_stopping(self, guest: Guest) -> None:
        """Remove a VM. If the VM runs, Proxmox refuses this. Raises LabError."""
        vm = self.api.nodes(guest.node).qemu(guest.vmid)
        if guest.is_protected:
            _send(lambda: vm.config.put(protection=0))
        self.wait_for_task(guest.node, _send(vm.delete))

    def stop_and_remove(self, guest: Guest) -> None:
        """Stop the guest if it runs, and remove it with its disks. Raises LabError."""
        api = getattr(self.api.nodes(guest.node), guest.kind)(guest.vmid)
        if guest.is_protected:
            _send(lambda: api.config.put(protection=0))
        if _send(api.status.current.get).get("status") == "running":
            self.wait_for_task(guest.node, _send(api.status.stop.post))
        self.wait_for_task(guest.node, _send(api.delete))

    def remove_archive(self, volume: str) -> None:
        """Remove the backup archive with this volume id. Raises LabError."""
        storage = self.api.nodes(self.lab_settings.node).storage(self.lab_settings.backup_storage)
        self.wait_for_task(self.lab_settings.node, _send(storage.content(volume).delete))

    def wait_for_task(self, node: str, upid: Any) -> None:
        """Wait until a Proxmox task has ended. Raises LabError if it failed.

        `upid` is the answer to a request. If the answer is no UPID, the request started no Proxmox task to wait for.
        """
        if not str(upid or "").startswith("UPID:"):
            return
        deadline = time.monotonic() + PROXMOX_TASK_TIMEOUT_S
        while True:
            status = _send(self.api.nodes(node).tasks(upid).status.get)
            if status.get("status") != "running":
                break
            if time.monotonic() > deadline:
                raise LabError(f"the Proxmox task {upid} has not ended within {PROXMOX_TASK_TIMEOUT_S} s")
            time.sleep(TASK_POLL_INTERVAL_S)
        exit_status = str(status.get("exitstatus") or "")
        if exit_status != "OK" and not exit_status.startswith("WARNINGS"):
            raise LabError(f"the Proxmox task {upid} has failed: {exit_status}")


def _send(request: Callable[[], Any]) -> Any:
    """Send a request by calling `request`. Return the result of the call.

    Raises NoAnswer, or LabError with Proxmox's text.
    """
    try:
        return request()
    except ResourceException as exc:
        raise LabError(f"{exc.status_code} {exc.status_message}: {exc.content}") from exc
    except requests.RequestException as exc:
        raise NoAnswer(f"Proxmox does not answer: {type(exc).__name__}") from exc


def _has_disk(config: Mapping[str, Any]) -> bool:
    """Return whether a VM's configuration names a disk."""
    return any(
        _DISK_KEY.fullmatch(key) and str(value).partition(",")[0] not in _VALUES_WITHOUT_DISK
        for key, value in config.items()
    )
