"""Read-only questions to Proxmox: VM identity, free VMIDs, metrics, preflight checks.

Nothing is ever changed here: every change goes through a playbook. A list proves no absence, because a token without
VM.Audit gets an empty one with HTTP 200; to prove it, ask `permissions` and the VM's own configuration.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from executor.errors import ErrorCode, JobError
from executor.model import GuestKind
from executor.proxmox.connection import ProxmoxConnection, ProxmoxSession
from executor.proxmox.rows import (
    NodeRow,
    StorageRow,
    VmRow,
    node_rows,
    number_in,
    object_in,
    objects_in,
    storage_rows,
    text_in,
    vm_rows,
)
from executor.settings.types import MAX_VMID, MIN_VMID

STORAGE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,99}")
NODE_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62})")
MARKER_LINE = re.compile(r"^smith-uid=([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\s*?$", re.MULTILINE | re.IGNORECASE)


class ProxmoxReader:
    """Asks Proxmox. Thread-safe: each thread has a connection of its own.

    Every failure is a JobError with the code that `error_rules.py` gives it.
    """

    def __init__(
        self,
        connection: ProxmoxConnection,
        timeout_s: float = 10,
        *,
        renew: Callable[[], ProxmoxConnection] | None = None,  # asked after a 401 or 403
    ) -> None:
        self._session = ProxmoxSession(connection, timeout_s, renew)

    @property
    def connection(self) -> ProxmoxConnection:
        """The connection in force."""
        return self._session.connection

    @connection.setter
    def connection(self, connection: ProxmoxConnection) -> None:
        self._session.connection = connection

    def version(self) -> str:
        """Ask for Proxmox VE's version, such as `9.0.3`. Any valid login may."""
        return text_in(object_in(self._session.get("/version")).get("version"))

    def vms(self) -> list[VmRow]:
        """List the VMs, containers and templates that the token may see, of the whole cluster, in one call."""
        return vm_rows(self._session.get("/cluster/resources", type="vm"))

    def nodes(self) -> list[NodeRow]:
        """List the cluster's nodes."""
        return node_rows(self._session.get("/nodes"))

    def storages(self) -> list[StorageRow]:
        """List the storages that the token may see (Datastore.Audit, or the right to allocate), node by node."""
        return storage_rows(self._session.get("/cluster/resources", type="storage"))

    def volumes(self, node: str, storage: str, content: str) -> frozenset[str]:
        """List the volumes of one kind (iso, vztmpl, backup) on a node's storage, as far as the token may see them."""
        path = f"/nodes/{_valid_node(node)}/storage/{_valid_storage(storage)}/content"
        return frozenset(text_in(row.get("volid")) for row in objects_in(self._session.get(path, content=content)))

    def bridges(self, node: str) -> frozenset[str]:
        """Ask which bridges and virtual networks a node offers us; empty when the token may see none."""
        answer = self._session.get(f"/nodes/{_valid_node(node)}/network", type="any_bridge")
        return frozenset(text_in(row.get("iface")) for row in objects_in(answer))

    def nodes_in_maintenance(self) -> frozenset[str]:
        """Ask the HA manager which nodes an operator has emptied. Needs Sys.Audit on `/`."""
        answer = object_in(self._session.get("/cluster/ha/status/manager_status"))
        manager = answer.get("manager_status", answer)
        states = manager.get("node_status") if isinstance(manager, dict) else None
        return frozenset(node for node, state in states.items() if state == "maintenance") if states else frozenset()

    def vm_config(self, node: str, vmid: int, *, kind: str = "qemu") -> dict[str, Any]:
        """Read a VM's configuration from its node, with pending changes merged in.

        VM_NOT_FOUND here means: not on this node, or the token lacks VM.Audit. It is no proof that the VM is gone.
        """
        if kind not in tuple(GuestKind):
            raise JobError(ErrorCode.INVALID_REQUEST, "not a kind of guest")
        return object_in(self._session.get(f"/nodes/{_valid_node(node)}/{kind}/{_valid_vmid(vmid)}/config"))

    def is_vmid_free(self, vmid: int) -> bool:
        """Ask whether no guest of the cluster has this VMID, those included that the token may not see."""
        _valid_vmid(vmid)  # Proxmox answers 400 to a wrong one too
        return not self._session.is_bad_request("/cluster/nextid", vmid=vmid)

    def is_quorate(self) -> bool:
        """Ask whether the cluster has quorum. A node on its own has.

        Only Sys.Audit on `/` shows the cluster's own word; without it, more than half of the nodes must be online.
        """
        try:
            answer = self._session.get("/cluster/status")
        except JobError as error:
            if error.code is not ErrorCode.PVE_PERMISSION:
                raise
            nodes = self.nodes()
            return 2 * sum(node.is_online for node in nodes) > len(nodes)
        clusters = [row for row in objects_in(answer) if row.get("type") == "cluster"]
        return all(number_in(row.get("quorate")) for row in clusters)

    def may_see_all_vms(self) -> bool:
        """Ask whether a VM that is not in our lists is really not there: VM.Audit on `/vms`."""
        return "VM.Audit" in self.permissions("/vms")

    def find_by_marker(self, rows: Iterable[VmRow], service_id: str, *, name_suffix: str) -> VmRow | None:
        """Look among `vms()` for the VM whose description says that it is the service's.

        The end of the name holds the service's first digits and picks the few whose configuration is read. Two such
        VMs are one too many: VM_IDENTITY_MISMATCH, for a person to look at.
        """
        found = [row for row in rows if self._may_carry_marker(row, name_suffix) and self._is_of(row, service_id)]
        if len(found) > 1:
            vmids = ", ".join(str(row.vmid) for row in found)
            raise JobError(ErrorCode.VM_IDENTITY_MISMATCH, f"more than one VM carries the service's marker: {vmids}")
        return found[0] if found else None

    def find_unmarked(self, rows: Iterable[VmRow], name: str, vmids: range) -> VmRow | None:
        """Look among `vms()` for the one VM of that name, on one of these VMIDs, that carries no marker at all.

        A clone carries its template's description until it is configured, and the name is there from the beginning.
        A container has its marker from its first moment.
        """
        clones = [row for row in rows if row.kind == GuestKind.QEMU and row.name == name and row.vmid in vmids]
        found = [row for row in clones if self._may_carry_marker(row, name)]
        return found[0] if len(found) == 1 and not self._markers_on(found[0]) else None

    def _markers_on(self, row: VmRow) -> list[str]:
        return MARKER_LINE.findall(text_in(self._config_of(row).get("description")))

    @staticmethod
    def _may_carry_marker(row: VmRow, name_suffix: str) -> bool:
        return not row.is_template and row.name.endswith(name_suffix)

    def _is_of(self, row: VmRow, service_id: str) -> bool:
        return self.marker_of(self._config_of(row)) == service_id.lower()

    def _config_of(self, row: VmRow) -> dict[str, Any]:
        try:
            return self.vm_config(row.node, row.vmid, kind=row.kind)
        except JobError as error:
            if error.code is not ErrorCode.VM_NOT_FOUND:
                raise
            # Moved or removed since the list was made: looking again decides, a guess could make a second VM.
            raise JobError(ErrorCode.PVE_CONFLICT, f"VM {row.vmid} moved or vanished while it was looked at") from error

    def permissions(self, path: str) -> frozenset[str]:
        """Ask which privileges we hold on a path, such as `/vms/100`. Any valid login may."""
        found = object_in(self._session.get("/access/permissions", path=path)).get(path)
        return frozenset(found) if isinstance(found, dict) else frozenset()  # the values say only: propagated or not

    def roles(self) -> dict[str, frozenset[str]]:
        """List the roles with their privileges. Any valid login may."""
        answer = self._session.get("/access/roles")
        rows = objects_in(answer) if isinstance(answer, list) else []
        return {str(row.get("roleid")): frozenset(str(row.get("privs") or "").split(",")) for row in rows}

    @staticmethod
    def marker_of(config: dict[str, Any]) -> str:
        """Read whose VM this is: the service's UUID in its description, '' without one, or with two different ones."""
        found = {uid.lower() for uid in MARKER_LINE.findall(text_in(config.get("description")))}
        return found.pop() if len(found) == 1 else ""


def _valid_node(node: str) -> str:
    if not NODE_NAME.fullmatch(node):
        raise JobError(ErrorCode.INVALID_REQUEST, "not the name of a node")
    return node


def _valid_storage(storage: str) -> str:
    if not STORAGE_NAME.fullmatch(storage):
        raise JobError(ErrorCode.INVALID_REQUEST, "not the name of a storage")
    return storage


def _valid_vmid(vmid: int) -> int:
    if not MIN_VMID <= vmid <= MAX_VMID:
        raise JobError(ErrorCode.INVALID_REQUEST, f"{vmid} is not a VMID")
    return vmid


# ---------------------------------------------------------------------------------------------------------------
# Rows. Proxmox's numbers come as numbers, as text, or not at all, depending on version, guest and node.
