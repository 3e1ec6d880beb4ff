"""Reads VMs, nodes, storages and privileges from Proxmox.

This module changes nothing. A VM that is missing from a list may still exist, because Proxmox lists only the VMs that
the token may see. `may_see_all_vms` returns whether a list is complete.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Self

from executor.errors import JobError
from executor.model import GuestKind
from executor.proxmox.connection import ProxmoxConnection, ProxmoxSession
from executor.proxmox.rows import (
    ArchiveRow,
    NodeRow,
    StorageConfig,
    StorageRow,
    VmRow,
    archive_rows,
    as_float,
    as_object,
    as_objects,
    as_text,
    fill_in_vm_row,
    is_template,
    node_rows,
    storage_configs,
    storage_rows,
    vm_rows,
)
from executor.settings.types import MAX_VMID, MIN_VMID
from executor.shared.error_codes import ErrorCode
from executor.shared.marker import marker_values_in, service_id_in
from executor.shared.sdn_zones import VNET_NAME, zone_in_refusal

#: Matches the name of a storage. A name that matches is safe in a URL's path.
STORAGE_NAME_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,99}")
#: Matches the name of a node. A name that matches is safe in a URL's path.
NODE_NAME_PATTERN = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62})")
#: The tag of every VM that the agent manages.
SMITH_TAG = "smith"


class ProxmoxReader:
    """Reads from Proxmox. It is thread-safe, because each thread has its own TCP connection.

    Every failed request raises a JobError. `shared/error_rules.py` determines the error code.
    """

    def __init__(
        self,
        connection: ProxmoxConnection,
        timeout_s: float = 10,
        *,
        reload_connection: Callable[[], ProxmoxConnection] | None = None,
    ) -> None:
        """Store the address and the credentials.

        `reload_connection` is called after Proxmox has answered 401 or 403. It returns the current credentials.
        """
        self._session = ProxmoxSession(connection, timeout_s, reload_connection)

    @classmethod
    def from_session(cls, session: ProxmoxSession) -> Self:
        """Return a reader that sends its requests with an existing session."""
        reader = cls(session.connection)
        reader._session = session
        return reader

    @property
    def connection(self) -> ProxmoxConnection:
        """The address and the credentials that the next request uses."""
        return self._session.connection

    @connection.setter
    def connection(self, connection: ProxmoxConnection) -> None:
        self._session.connection = connection

    def version(self) -> str:
        """Return the version of Proxmox VE, such as `9.0.3`. The token needs no privilege for this request."""
        return as_text(as_object(self._session.get("/version")).get("version"))

    def vms(self) -> list[VmRow]:
        """List the VMs, containers and templates of the cluster that the token may see.

        A row lacks facts (the name, the status and all numbers) if the VM's node sends no statistics of the VM. The row
        of a new VM may have the facts of a deleted VM that had the same VMID.
        """
        return vm_rows(self._session.get("/cluster/resources", type="vm"))

    def add_missing_facts(self, rows: Iterable[VmRow]) -> list[VmRow]:
        """Return the rows. Add the name, cores and memory to a row without facts, from the configuration of its VM.

        A row whose `has_statistics` is False lacks facts. Its status and its other numbers stay unknown. The row of a
        VM that is being created always gets the name from the configuration, because the name in the row may not be
        final. Raises JobError if a configuration cannot be read: PVE_CONFLICT if the VM has moved, NODE_DOWN if the
        VM's node does not answer.
        """
        return [
            row if row.has_statistics and not row.is_being_created else fill_in_vm_row(row, self._read_config(row))
            for row in rows
        ]

    def nodes(self) -> list[NodeRow]:
        """List the cluster's nodes."""
        return node_rows(self._session.get("/nodes"))

    def nodes_in_maintenance(self) -> frozenset[str]:
        """List the nodes that the HA manager has put into maintenance mode. Every token may read this list."""
        rows = as_objects(self._session.get("/cluster/resources", type="node"))
        return frozenset(as_text(row.get("node")) for row in rows if row.get("hastate") == "maintenance")

    def storages(self) -> list[StorageRow]:
        """List the storages that the token may see, with one row for each node of a storage.

        The token sees a storage if the token has Datastore.Audit or a Datastore.Allocate* privilege on it.
        """
        return storage_rows(self._session.get("/cluster/resources", type="storage"))

    def storage_configs(self) -> dict[str, StorageConfig]:
        """Return the configuration of each storage that the token may see, including disabled storages.

        The keys of the result are the names of the storages.
        """
        return storage_configs(self._session.get("/storage"))

    def volumes(self, node: str, storage: str, content: str = "", *, vmid: int = 0) -> frozenset[str]:
        """List the volumes on a node's storage that the token may see.

        `content` is iso, vztmpl or backup, or '' for all kinds. With `vmid`, only the volumes of this VMID are listed.
        """
        path = f"/nodes/{_require_valid_node(node)}/storage/{_require_valid_storage(storage)}/content"
        query: dict[str, Any] = {"content": content} if content else {}
        data = self._session.get(path, **query, **({"vmid": vmid} if vmid else {}))
        return frozenset(as_text(row.get("volid")) for row in as_objects(data))

    def archives(self, node: str, storage: str) -> list[ArchiveRow]:
        """List the archives (backups of guests) on a node's storage that the token may see.

        Proxmox lists an archive only to a token with VM.Backup on its guest, or with Datastore.Allocate on the storage.
        """
        path = f"/nodes/{_require_valid_node(node)}/storage/{_require_valid_storage(storage)}/content"
        return archive_rows(self._session.get(path, content="backup"))

    def bridges(self, node: str) -> frozenset[str]:
        """List the bridges and virtual networks (SDN) of a node that the token may see."""
        data = self._session.get(f"/nodes/{_require_valid_node(node)}/network", type="any_bridge")
        return frozenset(as_text(row.get("iface")) for row in as_objects(data))

    def vm_config(self, node: str, vmid: int, *, kind: str = "qemu") -> dict[str, Any]:
        """Read the configuration of a VM or container from its node. Pending changes are included.

        Raises JobError PVE_CONFLICT if the VM is not on this node, and PVE_PERMISSION if the token lacks VM.Audit. In
        both cases the VM may exist.
        """
        path = f"/nodes/{_require_valid_node(node)}/{_require_valid_kind(kind)}/{_require_valid_vmid(vmid)}/config"
        return as_object(self._session.get(path))

    def snapshot_count(self, node: str, vmid: int, *, kind: str = "qemu") -> int:
        """Return how many snapshots a VM or container has. Raises the same errors as `vm_config`."""
        path = f"/nodes/{_require_valid_node(node)}/{_require_valid_kind(kind)}/{_require_valid_vmid(vmid)}/snapshot"
        rows = as_objects(self._session.get(path))
        # Proxmox also lists the current state of the VM, as `current`.
        return sum(as_text(row.get("name")) not in ("", "current") for row in rows)

    def is_vmid_free(self, vmid: int) -> bool:
        """Return whether no guest of the cluster has the VMID. Guests that the token may not see count, too."""
        # Proxmox answers 400 to a VMID that is in use, but also to an invalid VMID. So an invalid VMID is refused here.
        _require_valid_vmid(vmid)
        return not self._session.is_refused_as_bad_request("/cluster/nextid", vmid=vmid)

    def is_quorate(self) -> bool:
        """Return whether the cluster has quorum. A node without a cluster always has quorum.

        Only a token with Sys.Audit on `/` may read the state of the cluster. For any other token, this method returns
        whether more than half of the nodes are online.
        """
        try:
            data = self._session.get("/cluster/status")
        except JobError as error:
            if error.code is not ErrorCode.PVE_PERMISSION:
                raise
            nodes = self.nodes()
            online_count = sum(node.is_online for node in nodes)
            return online_count > len(nodes) / 2
        clusters = [row for row in as_objects(data) if row.get("type") == "cluster"]
        return all(as_float(row.get("quorate")) for row in clusters)

    def may_see_all_vms(self) -> bool:
        """Return whether the token may see every VM, because it has VM.Audit on `/vms`.

        If the token may not see every VM, a VM that is missing from `vms` may still exist.
        """
        return "VM.Audit" in self.permissions("/vms")

    def find_vm_by_marker(self, rows: Iterable[VmRow], service_id: str, *, name_suffix: str) -> VmRow | None:
        """Return the VM among `rows` whose description has the marker of the service; None if no VM has this marker.

        A marker is a line in the description that contains the id of the VM's service. `rows` must be a result of
        `add_missing_facts`. `name_suffix` is a dash and the first digits of the service's id, such as `-1f2e3d4c`. The
        agent gives the service's VM a name that ends with this suffix, so only the configurations of VMs with such a
        name are read. Raises JobError VM_IDENTITY_MISMATCH if several VMs have the marker. Then an operator must decide
        which one is the service's VM.
        """
        candidates = [row for row in rows if self._may_have_marker(row, name_suffix)]
        rows_with_config = [(row, self._read_config(row)) for row in candidates]
        marked_vms = [
            fill_in_vm_row(row, config)
            for row, config in rows_with_config
            if self.service_id_in_marker(config) == service_id.lower() and not is_template(config)
        ]
        if len(marked_vms) > 1:
            vmids = ", ".join(str(row.vmid) for row in marked_vms)
            raise JobError(ErrorCode.VM_IDENTITY_MISMATCH, f"more than one VM has the service's marker: {vmids}")
        return marked_vms[0] if marked_vms else None

    def find_partial_clone(self, rows: Iterable[VmRow], name: str, allowed_vmids: range) -> VmRow | None:
        """Return the VM among `rows` that is a partial clone; None if there is none.

        A partial clone is a clone whose configuration was not finished. A VM counts as a partial clone if it is the
        only VM whose name is `name` and whose VMID is in `allowed_vmids` (the VMIDs that the agent may use), and if its
        description has no marker. A clone gets its name before it is configured: Proxmox sets the name when the first
        drive has been copied. Until the clone is configured, it has the description of its template, which contains no
        marker. A container is never returned, because it is created with its marker. `rows` must be a result of
        `add_missing_facts`.
        """
        vms = [row for row in rows if row.kind == GuestKind.QEMU and row.name == name and row.vmid in allowed_vmids]
        clones = [row for row in vms if not row.is_template]
        return clones[0] if len(clones) == 1 and not self._read_markers(clones[0]) else None

    def _read_markers(self, row: VmRow) -> list[str]:
        return marker_values_in(as_text(self._read_config(row).get("description")))

    @staticmethod
    def _may_have_marker(row: VmRow, name_suffix: str) -> bool:
        """Return whether a VM may have the marker, according to its row in the list. Templates have no marker."""
        return not row.is_template and row.name.endswith(name_suffix)

    def _read_config(self, row: VmRow) -> dict[str, Any]:
        """Read the configuration of a listed VM. Raises JobError PVE_CONFLICT if the VM is not on its node any more."""
        try:
            return self.vm_config(row.node, row.vmid, kind=row.kind)
        except JobError as error:
            if error.code is not ErrorCode.PVE_CONFLICT:
                raise
            # The VM was moved or removed after the list was read, so it is unknown whether the VM has the marker. The
            # job must be retried with a new list. A job that ignored this VM could create a second VM for the service.
            raise JobError(
                ErrorCode.PVE_CONFLICT, f"VM {row.vmid} was moved or removed after the list of VMs was read"
            ) from error

    def cluster_options(self) -> dict[str, Any]:
        """Return the cluster's options. A token without Sys.Audit on `/` gets few options, such as `allowed-tags`."""
        return as_object(self._session.get("/cluster/options"))

    def permissions(self, path: str) -> frozenset[str]:
        """Return the token's privileges on a path, such as `/vms/100`. The request needs no privilege."""
        # The keys are the privileges. The values only say whether a privilege also applies to the paths below this one.
        granted = as_object(self._session.get("/access/permissions", path=path)).get(path)
        return frozenset(granted) if isinstance(granted, dict) else frozenset()

    def pools(self) -> frozenset[str]:
        """List the resource pools on which the token has Pool.Audit. Proxmox does not list other pools."""
        return frozenset(as_text(row.get("poolid")) for row in as_objects(self._session.get("/pools")))

    def vnet_zones(self) -> dict[str, str]:
        """Return the SDN zone of each VNet on which the token has SDN.Audit."""
        rows = as_objects(self._session.get("/cluster/sdn/vnets"))
        return {as_text(row.get("vnet")): as_text(row.get("zone")) for row in rows if row.get("zone")}

    def vnet_zone(self, name: str) -> str:
        """Return the SDN zone of the VNet `name`; '' if the VNet does not exist, or if its zone is not known.

        If Proxmox refuses the request, the zone is taken from the text of the refusal.
        """
        if not VNET_NAME.fullmatch(name):
            return ""
        try:
            return as_text(as_object(self._session.get(f"/cluster/sdn/vnets/{name}")).get("zone"))
        except JobError as error:
            return zone_in_refusal(str(error))

    def roles(self) -> dict[str, frozenset[str]]:
        """Return the privileges of each role. The request needs no privilege."""
        data = self._session.get("/access/roles")
        roles: dict[str, frozenset[str]] = {}
        rows = as_objects(data) if isinstance(data, list) else []
        for row in rows:
            roles[str(row.get("roleid"))] = frozenset(str(row.get("privs") or "").split(","))
        return roles

    @staticmethod
    def service_id_in_marker(config: dict[str, Any]) -> str:
        """Return the id of the service whose marker is in a VM's configuration.

        Return '' if the description has no marker, or markers of several services.
        """
        return service_id_in(as_text(config.get("description")))


def _require_valid_kind(kind: str) -> str:
    if kind not in tuple(GuestKind):
        raise JobError(ErrorCode.INVALID_REQUEST, "the kind of guest is neither qemu nor lxc")
    return kind


def _require_valid_node(node: str) -> str:
    if not NODE_NAME_PATTERN.fullmatch(node):
        raise JobError(ErrorCode.INVALID_REQUEST, "invalid node name")
    return node


def _require_valid_storage(storage: str) -> str:
    if not STORAGE_NAME_PATTERN.fullmatch(storage):
        raise JobError(ErrorCode.INVALID_REQUEST, "invalid storage name")
    return storage


def _require_valid_vmid(vmid: int) -> int:
    if not MIN_VMID <= vmid <= MAX_VMID:
        raise JobError(ErrorCode.INVALID_REQUEST, f"{vmid} is not a VMID")
    return vmid
