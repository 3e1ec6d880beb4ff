"""Reads the guests of the lab's ranges, and makes the few changes that need no playbook: leases, and removals."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
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

TIMEOUT_S = 60
#: How long a Proxmox task that stops or removes a guest may take.
TASK_TIMEOUT_S = 300
TASK_INTERVAL_S = 0.2
GIB = 1024**3


class LabError(SmithError):
    """The lab's Proxmox refused a request, or a Proxmox task failed."""


class ChangedMeanwhile(LabError):
    """Another client has created, changed or removed the VM first."""


@dataclass(frozen=True, kw_only=True)
class Guest:
    """A VM or container in the lab's VMIDs, from its configuration."""

    vmid: int
    node: str
    kind: str
    name: str = ""
    notes: str = ""
    lock: str = ""
    digest: str = ""  #: of the configuration
    is_template: bool = False
    is_protected: bool = False


class LabCluster:
    """The lab's Proxmox cluster."""

    def __init__(self, lab: LabSettings) -> None:
        connection = ProxmoxConnection.from_settings(lab.executor_settings())
        self.lab = lab
        self.reader = ProxmoxReader(connection, timeout_s=TIMEOUT_S)
        self.api = ProxmoxAPI(
            connection.host,
            port=connection.port,
            user=connection.user,
            token_name=connection.token_id,
            token_value=connection.token_secret,
            verify_ssl=connection.verify if isinstance(connection.verify, bool) else str(connection.verify),
            timeout=TIMEOUT_S,
        )

    # --- reading ---

    def guests(self, vmids: range) -> list[Guest]:
        """Return the guests with these VMIDs, with their configurations, in the order of their VMIDs."""
        rows = sorted((row for row in self.reader.vms() if row.vmid in vmids), key=lambda row: row.vmid)
        return [guest for row in rows if (guest := self._guest(row)) is not None]

    def guest(self, vmid: int) -> Guest | None:
        """Return the guest with this VMID; None if there is none."""
        return next(iter(self.guests(range(vmid, vmid + 1))), None)

    def disk_gib(self, template: int) -> int:
        """Return the size of a template's first disk. Raises LabError if the template is not there."""
        row = next((row for row in self.reader.vms() if row.vmid == template), None)
        if row is None:
            raise LabError(f"the template {template} does not exist, or the token may not see it")
        return -(-row.max_disk_bytes // GIB)

    def archives(self) -> list[ArchiveRow]:
        """Return the backups on the lab's backup storage; none if the lab has no backup storage."""
        return self.reader.archives(self.lab.node, self.lab.backup_storage) if self.lab.backup_storage else []

    def _guest(self, row: VmRow) -> Guest | None:
        """Return a listed guest with its configuration; None if it was moved or removed after the list was read."""
        try:
            config = self.reader.vm_config(row.node, row.vmid, kind=row.kind)
        except JobError as error:
            if error.code is ErrorCode.PVE_CONFLICT:
                return None
            raise
        return Guest(
            vmid=row.vmid,
            node=row.node,
            kind=row.kind,
            name=str(config.get("hostname" if row.kind == GuestKind.LXC else "name") or ""),
            notes=str(config.get("description") or ""),
            lock=str(config.get("lock") or row.lock),
            digest=str(config.get("digest") or ""),
            is_template=str(config.get("template")) == "1",
            is_protected=str(config.get("protection")) == "1",
        )

    # --- changes ---

    def create_stopped_vm(self, vmid: int, name: str, notes: str) -> None:
        """Create a VM without disks, and do not start it. Raises ChangedMeanwhile if the VMID is in use."""
        node = self.api.nodes(self.lab.node)
        try:
            upid = _requested(lambda: node.qemu.post(vmid=vmid, name=name, description=notes))
        except LabError as error:
            if "already exists" in str(error):
                raise ChangedMeanwhile(str(error)) from error
            raise
        self._wait(self.lab.node, upid)

    def replace_name_and_notes(self, guest: Guest, name: str, notes: str) -> None:
        """Change a VM with one request. Raises ChangedMeanwhile unless the VM still is as it was read."""
        config = self.api.nodes(guest.node).qemu(guest.vmid).config
        try:
            _requested(lambda: config.put(name=name, description=notes, digest=guest.digest))
        except LabError as error:
            if "checksum mis" in str(error) or "does not exist" in str(error):
                raise ChangedMeanwhile(str(error)) from error
            raise

    def remove(self, guest: Guest) -> None:
        """Stop the guest if it runs, and remove it with its disks. Raises LabError."""
        api = getattr(self.api.nodes(guest.node), guest.kind)(guest.vmid)
        if guest.is_protected:
            _requested(lambda: api.config.put(protection=0))
        if _requested(api.status.current.get).get("status") == "running":
            self._wait(guest.node, _requested(api.status.stop.post))
        self._wait(guest.node, _requested(api.delete))

    def remove_archive(self, volume: str) -> None:
        """Remove the backup with this volume. Raises LabError."""
        storage = self.api.nodes(self.lab.node).storage(self.lab.backup_storage)
        self._wait(self.lab.node, _requested(storage.content(volume).delete))

    def _wait(self, node: str, upid: Any) -> None:
        """Wait until a Proxmox task has ended. Raises LabError if it failed. An answer without a task needs no wait."""
        if not str(upid or "").startswith("UPID:"):
            return
        deadline = time.monotonic() + TASK_TIMEOUT_S
        while True:
            status = _requested(self.api.nodes(node).tasks(upid).status.get)
            if status.get("status") != "running":
                break
            if time.monotonic() > deadline:
                raise LabError(f"the Proxmox task {upid} has not ended within {TASK_TIMEOUT_S} s")
            time.sleep(TASK_INTERVAL_S)
        outcome = str(status.get("exitstatus") or "")
        if outcome != "OK" and not outcome.startswith("WARNINGS"):
            raise LabError(f"the Proxmox task {upid} has failed: {outcome}")


def _requested(request: Callable[[], Any]) -> Any:
    """Send a request and return its data. Raises LabError with Proxmox's text."""
    try:
        return request()
    except ResourceException as exc:
        raise LabError(f"{exc.status_code} {exc.status_message}: {exc.content}") from exc
    except requests.RequestException as exc:
        raise LabError(f"Proxmox does not answer: {type(exc).__name__}") from exc
