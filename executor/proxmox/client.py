"""Reads VMs, nodes, storages and privileges from Proxmox, for the processing of jobs, metrics and preflight checks.

This module never changes anything: playbooks make every change. A VM that is missing from a list may still exist,
because Proxmox lists only the VMs that the token may see. `may_see_all_vms` returns whether a list is complete.
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
    as_float,
    as_object,
    as_objects,
    as_text,
    node_rows,
    storage_rows,
    vm_rows,
)
from executor.settings.types import MAX_VMID, MIN_VMID

STORAGE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,99}")
NODE_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62})")
#: The tag of every VM that the agent manages.
TAG = "smith"
#: The marker is a line in the description of a VM. It has the id of the service that the VM belongs to.
MARKER_LINE = re.compile(r"^smith-uid=([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\s*?$", re.MULTILINE | re.IGNORECASE)


class ProxmoxReader:
    """Reads from Proxmox. It is thread-safe, because each thread has its own connection.

    Every failed request raises a JobError. `error_rules.py` determines its code.
    """

    def __init__(
        self,
        connection: ProxmoxConnection,
        timeout_s: float = 10,
        *,
        reload: Callable[[], ProxmoxConnection]
        | None = None,  # returns the present credentials; called after a 401 or 403
    ) -> None:
        self._session = ProxmoxSession(connection, timeout_s, reload)

    @property
    def connection(self) -> ProxmoxConnection:
        """The connection that the next request uses."""
        return self._session.connection

    @connection.setter
    def connection(self, connection: ProxmoxConnection) -> None:
        self._session.connection = connection

    def version(self) -> str:
        """Return the version of Proxmox VE, such as `9.0.3`. The token needs no privilege for this request."""
        return as_text(as_object(self._session.get("/version")).get("version"))

    def vms(self) -> list[VmRow]:
        """List the VMs, containers and templates of the cluster that the token may see."""
        return vm_rows(self._session.get("/cluster/resources", type="vm"))

    def nodes(self) -> list[NodeRow]:
        """List the cluster's nodes."""
        return node_rows(self._session.get("/nodes"))

    def storages(self) -> list[StorageRow]:
        """List the storages that the token may see, with one row for each node of a storage.

        To see a storage, the token needs Datastore.Audit or one of the allocate privileges on it.
        """
        return storage_rows(self._session.get("/cluster/resources", type="storage"))

    def volumes(self, node: str, storage: str, content: str) -> frozenset[str]:
        """List the volumes on a node's storage that the token may see. `content` is iso, vztmpl or backup."""
        path = f"/nodes/{_valid_node(node)}/storage/{_valid_storage(storage)}/content"
        return frozenset(as_text(row.get("volid")) for row in as_objects(self._session.get(path, content=content)))

    def bridges(self, node: str) -> frozenset[str]:
        """List those bridges and virtual networks (SDN) of a node that the token may see."""
        data = self._session.get(f"/nodes/{_valid_node(node)}/network", type="any_bridge")
        return frozenset(as_text(row.get("iface")) for row in as_objects(data))

    def nodes_in_maintenance(self) -> frozenset[str]:
        """List the nodes that the HA manager has put into maintenance mode. The token needs Sys.Audit on `/`."""
        data = as_object(self._session.get("/cluster/ha/status/manager_status"))
        manager = data.get("manager_status", data)
        states = manager.get("node_status") if isinstance(manager, dict) else None
        return frozenset(node for node, state in states.items() if state == "maintenance") if states else frozenset()

    def vm_config(self, node: str, vmid: int, *, kind: str = "qemu") -> dict[str, Any]:
        """Read the configuration of a VM or container from its node. Pending changes are included.

        A JobError VM_NOT_FOUND means that the VM is not on this node, or that the token lacks VM.Audit. This does not
        prove that the VM no longer exists.
        """
        if kind not in tuple(GuestKind):
            raise JobError(ErrorCode.INVALID_REQUEST, "the kind of guest is not qemu or lxc")
        return as_object(self._session.get(f"/nodes/{_valid_node(node)}/{kind}/{_valid_vmid(vmid)}/config"))

    def is_vmid_free(self, vmid: int) -> bool:
        """Return whether no guest of the cluster has this VMID. This includes guests that the token may not see."""
        _valid_vmid(vmid)  # Proxmox answers 400 to a VMID that is in use, and also to an invalid one
        return not self._session.is_bad_request("/cluster/nextid", vmid=vmid)

    def is_quorate(self) -> bool:
        """Return whether the cluster has quorum. A single node without a cluster always has quorum.

        If the token lacks Sys.Audit on `/`, it may not read the state of the cluster. Then this method returns whether
        more than half of the nodes are online.
        """
        try:
            data = self._session.get("/cluster/status")
        except JobError as error:
            if error.code is not ErrorCode.PVE_PERMISSION:
                raise
            nodes = self.nodes()
            return 2 * sum(node.is_online for node in nodes) > len(nodes)
        clusters = [row for row in as_objects(data) if row.get("type") == "cluster"]
        return all(as_float(row.get("quorate")) for row in clusters)

    def may_see_all_vms(self) -> bool:
        """Return whether the token may see every VM: it has VM.Audit on `/vms`.

        Only if it may, a VM that is missing from the list does not exist.
        """
        return "VM.Audit" in self.permissions("/vms")

    def find_by_marker(self, rows: Iterable[VmRow], service_id: str, *, name_suffix: str) -> VmRow | None:
        """Return the VM among `rows` whose description has the marker of the service; None if no VM has this marker.

        `name_suffix` has the first digits of the service's id. The agent gives each VM a name that ends with them, so
        this method reads only the configurations of VMs with such a name. Raises JobError VM_IDENTITY_MISMATCH if more
        than one VM has the marker, because an operator must then decide which one belongs to the service.
        """
        found = [row for row in rows if self._may_have_marker(row, name_suffix) and self._is_marked(row, service_id)]
        if len(found) > 1:
            vmids = ", ".join(str(row.vmid) for row in found)
            raise JobError(ErrorCode.VM_IDENTITY_MISMATCH, f"more than one VM has the service's marker: {vmids}")
        return found[0] if found else None

    def find_partial_clone(self, rows: Iterable[VmRow], name: str, vmids: range) -> VmRow | None:
        """Return the VM among `rows` that is a partial clone; None if there is none.

        A VM is a partial clone if it has no marker and is the only VM with this name and with one of these VMIDs. A
        clone has its name from the beginning. Until it is configured, it has the description of its template, which
        has no marker. A container is created with its marker, so this method never returns a container.
        """
        clones = [row for row in rows if row.kind == GuestKind.QEMU and row.name == name and row.vmid in vmids]
        found = [row for row in clones if self._may_have_marker(row, name)]
        return found[0] if len(found) == 1 and not self._markers_on(found[0]) else None

    def _markers_on(self, row: VmRow) -> list[str]:
        return MARKER_LINE.findall(as_text(self._config_of(row).get("description")))

    @staticmethod
    def _may_have_marker(row: VmRow, name_suffix: str) -> bool:
        """Return whether the row's name and type allow a marker; if not, its configuration need not be read."""
        return not row.is_template and row.name.endswith(name_suffix)

    def _is_marked(self, row: VmRow, service_id: str) -> bool:
        return self.marker_of(self._config_of(row)) == service_id.lower()

    def _config_of(self, row: VmRow) -> dict[str, Any]:
        """Read the configuration of a listed VM. Raises JobError PVE_CONFLICT if the VM is not on its node any more."""
        try:
            return self.vm_config(row.node, row.vmid, kind=row.kind)
        except JobError as error:
            if error.code is not ErrorCode.VM_NOT_FOUND:
                raise
            # The VM was moved or removed after the list was read, so it is unknown whether it has the marker. The job
            # is retried with a new list. If this VM were ignored, the job could create a second VM for the service.
            raise JobError(ErrorCode.PVE_CONFLICT, f"VM {row.vmid} was moved or removed during the search") from error

    def permissions(self, path: str) -> frozenset[str]:
        """Return the privileges that the token has on a path, such as `/vms/100`. The request needs no privilege."""
        # The keys are the privileges. The values only show whether a privilege also applies to the paths below.
        granted = as_object(self._session.get("/access/permissions", path=path)).get(path)
        return frozenset(granted) if isinstance(granted, dict) else frozenset()

    def roles(self) -> dict[str, frozenset[str]]:
        """Return the privileges of each role. The request needs no privilege."""
        data = self._session.get("/access/roles")
        rows = as_objects(data) if isinstance(data, list) else []
        return {str(row.get("roleid")): frozenset(str(row.get("privs") or "").split(",")) for row in rows}

    @staticmethod
    def marker_of(config: dict[str, Any]) -> str:
        """Return the service's id from the marker in a VM's configuration.

        Returns '' if the description has no marker, or markers of several services.
        """
        service_ids = {uid.lower() for uid in MARKER_LINE.findall(as_text(config.get("description")))}
        return service_ids.pop() if len(service_ids) == 1 else ""


def _valid_node(node: str) -> str:
    if not NODE_NAME.fullmatch(node):
        raise JobError(ErrorCode.INVALID_REQUEST, "invalid name of a node")
    return node


def _valid_storage(storage: str) -> str:
    if not STORAGE_NAME.fullmatch(storage):
        raise JobError(ErrorCode.INVALID_REQUEST, "invalid name of a storage")
    return storage


def _valid_vmid(vmid: int) -> int:
    if not MIN_VMID <= vmid <= MAX_VMID:
        raise JobError(ErrorCode.INVALID_REQUEST, f"{vmid} is not a VMID")
    return vmid
