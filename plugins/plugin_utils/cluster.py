# SPDX-License-Identifier: Apache-2.0
"""Reads data from one Proxmox cluster. Changes nothing.

A guest may exist even if Proxmox's list of guests does not contain it. `Cluster.check_absence` returns whether it is
proven that a guest does not exist and, if it is not proven, the reason.
"""

from __future__ import annotations

import re
from typing import Any

from . import guest_facts
from .bounded_session import BoundedSession
from .client import REQUEST_ERRORS, ResourceException, connect, login_name
from .guest_facts import CREATION_LOCKS, facts_of_absent_guest, unproven_absence
from .login import Login, read_login
from .proxmox_tasks import as_listed_task, error_with_cause, has_failure_cause, is_started_by, newest_first, vmids_in
from .request_values import is_yes
from .shared.error_rules import says_guest_not_found

#: The exceptions that Python raises while an answer of an unexpected form is read. The guest agent's answer may have
#: any form, because it comes from inside the guest.
UNREADABLE_ANSWER_ERRORS: tuple[type[Exception], ...] = (
    AttributeError,
    TypeError,
    ValueError,
    KeyError,
    RecursionError,
)
#: A percentage in a line of a Proxmox task's log, such as `transferred 3.2 GiB of 8.0 GiB (40.00%)`. Group 1: the
#: percentage without its decimals.
PERCENT = re.compile(r"\b(\d{1,3})(?:\.\d+)?\s?%")
#: Number of lines of a log that are read in one request. If a request has no limit, Proxmox returns only the first 50
#: lines. A full clone writes one line for each percent, a long migration one line each second.
LOG_PAGE_LINES = 5000
#: Maximum number of requests for one log. Each request reads LOG_PAGE_LINES lines.
MAX_LOG_PAGES = 20
#: Maximum number of Proxmox tasks of one guest that are requested. A template has many Proxmox tasks, because Proxmox
#: lists each clone task as a task of the template.
MAX_LISTED_TASKS = 500
#: The types of a storage's content that are disks of guests. Other types are ignored, such as backup archives, which
#: may belong to a deleted guest with the same VMID.
DISK_CONTENT = ("images", "rootdir")
#: Maximum number of characters that are read of one line of a log, and of the whole log.
MAX_LOG_LINE_CHARACTERS = 10_000
MAX_LOG_CHARACTERS = 16 * 1024 * 1024
#: Number of lines at the end of a Proxmox task's log that an Ansible action plugin quotes in its output.
LOG_END_LINES = 5
#: Maximum number of characters of each quoted line.
MAX_QUOTED_CHARACTERS = 200
#: A part of Proxmox's error text if a request names a node whose address Proxmox does not know.
UNKNOWN_HOST_TEXT = "hostname lookup"
#: HTTP statuses with which Proxmox reports that another node does not answer.
NODE_DOWN_HTTP_STATUSES = range(595, 600)


def open_cluster(connection: dict[str, Any] | None, ca_bundle: str, kind: str) -> tuple[Cluster, Login]:
    """Connect to the Proxmox cluster whose host and credentials are in `connection`. Return the cluster and the login.

    An empty `connection` or `ca_bundle` is read from the credentials file or from the environment. Raises
    LibraryMissing or LoginError.
    """
    login = read_login(connection, ca_bundle)
    api = connect(login.connection, login.ca_bundle)
    cluster = Cluster(api, kind, login_name(login.connection))
    # Proxmox may refuse a valid token for some seconds, so refused requests with a token are repeated. Requests with a
    # password are not repeated, because repeated logins may lock the account.
    has_token = not login.connection.get("api_password")
    cluster.session = BoundedSession(api._store["session"], repeats_refused_requests=has_token)
    return cluster, login


class Cluster:
    """Sends read requests to one Proxmox cluster. `kind` is `qemu` for virtual machines, `lxc` for containers."""

    session: BoundedSession  #: ends requests soon after the Ansible action plugin's deadline; set by `open_cluster`

    def __init__(self, api: Any, kind: str, user_or_token: str) -> None:
        """`user_or_token` is the name of the Proxmox user, or of the API token in the form `smith@pve!job`.

        No request is sent.
        """
        self.api = api
        self.kind = kind
        self.user_or_token = user_or_token
        self.log_end_by_upid: dict[str, list[str]] = {}  #: the last lines of each log that was read
        self._rows_by_type: dict[str, list[dict[str, Any]]] = {}  #: lists of nodes and storages, each read once

    def guest(self, node: str, vmid: int) -> Any:
        """Return the API resource of the VM or container."""
        return getattr(self.api.nodes(node), self.kind)(vmid)

    def read_facts(self, node: str, vmid: int) -> dict[str, Any] | None:
        """Read the guest's facts from this node; return None if the node does not have the guest."""
        guest = self.guest(node, vmid)
        try:
            rows = guest.pending.get()
            status = guest.status.current.get()
        except ResourceException as exc:
            if says_guest_not_found(str(exc)):
                return None
            raise
        facts = (
            guest_facts.facts_from_configuration(rows, status)
            if self.kind == "qemu"
            else guest_facts.container_facts_from_configuration(rows, status)
        )
        return {"exists": True, "kind": self.kind, "vmid": vmid, "node": node, **facts}

    def outdated_cloud_init_keys(self, node: str, vmid: int) -> list[str]:
        """Return the keys that were added, changed or removed after Proxmox generated the VM's cloud-init drive.

        A changed `ipconfigN` is not returned, because Proxmox does not list it.
        """
        rows = self.guest(node, vmid).cloudinit.get()
        return [str(row["key"]) for row in rows if "pending" in row or row.get("delete")]

    def _is_unknown_node(self, exc: Exception, node: str) -> bool:
        """Return True if a request failed because the cluster has no node of this name."""
        return UNKNOWN_HOST_TEXT in str(exc) and node not in {str(row.get("node")) for row in self.node_rows()}

    def is_being_created(self, node: str, vmid: int) -> bool:
        """Return True while Proxmox is cloning or creating the VM. Send one request."""
        try:
            return self.guest(node, vmid).status.current.get().get("lock") in CREATION_LOCKS
        except ResourceException as exc:
            if says_guest_not_found(str(exc)):
                return False
            raise

    def list_guests(self) -> list[dict[str, Any]]:
        """Return Proxmox's list of guests. It contains only the guests for which the login has a privilege."""
        return list(self.api.cluster.resources.get(type="vm"))

    def row_of(self, vmid: int, rows: list[dict[str, Any]] | None) -> dict[str, Any] | None:
        """Return the row of this VMID in the list of guests, or None. If `rows` is None or empty, read the list."""
        return next((row for row in rows or self.list_guests() if int(row.get("vmid", 0)) == vmid), None)

    def find_guest(self, vmid: int, expected_node: str, rows: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """Return the VM's facts. First try the node `expected_node`, then the node that the list of guests states.

        `rows` is a current list of guests. If it is None, the list is read when it is needed.
        """
        try:
            facts = self.read_facts(expected_node, vmid) if expected_node else None
        except ResourceException as exc:
            is_unknown_node = self._is_unknown_node(exc, expected_node)
            if exc.status_code not in NODE_DOWN_HTTP_STATUSES and not is_unknown_node:
                raise
            facts, row = None, self.row_of(vmid, rows)
            if not is_unknown_node and (row is None or row.get("node") == expected_node):
                raise  # the list names no other node for the VM
        if facts:
            return facts
        # A VM may move between two requests, so the node in its row may already be wrong. So the second attempt reads a
        # new list.
        for guest_rows in (rows, None):
            row = self.row_of(vmid, guest_rows)
            if row is None:
                return facts_of_absent_guest(vmid)
            # The guest is a container instead of a VM, or a VM instead of a container. Return only what its row says.
            if row.get("type") != self.kind:
                return facts_of_absent_guest(vmid) | {
                    "exists": True,
                    "kind": str(row.get("type")),
                    "node": str(row.get("node", "")),
                }
            if facts := self.read_facts(str(row["node"]), vmid):
                return facts
        return facts_of_absent_guest(vmid)

    def check_absence(self, vmid: int, expected_node: str) -> dict[str, Any]:
        """Check whether it is proven that the VM does not exist.

        Return the value of the fact `absence`: a dictionary with `is_proven`, `code` (an error code) and `text`. If
        `is_proven` is true, `code` and `text` are ''.

        The proof has four parts: the login has VM.Audit for the VMID, the cluster has a quorum, no node that is online
        has the VM, and the VMID is free. The node `expected_node`, on which the VM is expected, must be online.
        """
        privileges_by_path = self.api.access.permissions.get(path=f"/vms/{vmid}")
        if not any("VM.Audit" in privileges for privileges in privileges_by_path.values()):
            return unproven_absence(
                "PVE_PERMISSION", f"the token lacks VM.Audit on /vms/{vmid}, so it cannot see VM {vmid}"
            )
        is_online_by_node, is_quorate = self.node_states_and_quorum()
        if not is_quorate:
            return unproven_absence("PVE_NO_QUORUM", "the cluster has no quorum")
        offline_nodes = sorted(node for node in is_online_by_node if not is_online_by_node[node])
        if expected_node in offline_nodes:
            return unproven_absence("NODE_DOWN", f"node {expected_node} does not answer")
        for node in sorted(set(is_online_by_node) - set(offline_nodes)):
            if self.read_facts(node, vmid):
                return unproven_absence(
                    "PVE_CONFLICT",
                    f"VM {vmid} is on node {node}, although Proxmox's list of guests does not contain it",
                )
        if not self.is_vmid_free(vmid):
            code = "NODE_DOWN" if offline_nodes else "PVE_CONFLICT"
            return unproven_absence(
                code, f"VMID {vmid} is taken, although no node that answers has a guest with this VMID"
            )
        return {"is_proven": True, "code": "", "text": ""}

    def node_states_and_quorum(self) -> tuple[dict[str, bool], bool]:
        """Return a dictionary that says for each node whether it is online, and whether the cluster is quorate.

        `cluster/status` reports the quorum, but it needs the privilege Sys.Audit on `/`, which the login need not have.
        Without this privilege, the cluster counts as quorate if more than half of its nodes are online. This count
        omits the vote of a QDevice, so a quorate cluster may count as not quorate. This is safe: the absence of a VM is
        then not proven. A node that Proxmox cannot reach has the status `offline`; the status `unknown` means that the
        node is online but sends no statistics.
        """
        try:
            rows = self.api.cluster.status.get()
        except ResourceException as exc:
            if exc.status_code != 403:
                raise
            is_online_by_node = {str(row["node"]): row.get("status") != "offline" for row in self.api.nodes.get()}
            return is_online_by_node, sum(is_online_by_node.values()) * 2 > len(is_online_by_node)
        is_online_by_node = {str(row["name"]): bool(row.get("online")) for row in rows if row.get("type") == "node"}
        return is_online_by_node, all(bool(row.get("quorate")) for row in rows if row.get("type") == "cluster")

    def is_vmid_free(self, vmid: int) -> bool:
        """Return True if no guest has the VMID. Proxmox also checks guests for which the login has no privilege."""
        try:
            self.api.cluster.nextid.get(vmid=vmid)
        except ResourceException as exc:
            if exc.status_code == 400:
                return False
            raise
        return True

    def tasks(self, node: str, vmid: int) -> list[dict[str, Any]]:
        """Return the Proxmox tasks that this login has started for the VM on this node, newest first.

        Proxmox tasks of other logins are left out. Proxmox may list them: a login with Sys.Audit gets the Proxmox tasks
        of all users and tokens. A login with a user's password gets the Proxmox tasks of this user's tokens.
        """
        # Without `source="all"`, Proxmox does not list the Proxmox tasks that are still running.
        try:
            tasks = self.api.nodes(node).tasks.get(vmid=vmid, source="all", limit=MAX_LISTED_TASKS) if node else []
        except ResourceException as exc:
            if not self._is_unknown_node(exc, node):
                raise
            tasks = []
        return newest_first([task for task in tasks if is_started_by(task, self.user_or_token)])

    def tasks_on_all_nodes(self, vmid: int) -> tuple[list[dict[str, Any]], bool]:
        """Return the VM's Proxmox tasks on all online nodes, newest first, and whether every node is online."""
        is_online_by_node, _is_quorate = self.node_states_and_quorum()
        tasks = [task for node in is_online_by_node if is_online_by_node[node] for task in self.tasks(node, vmid)]
        return newest_first(tasks), all(is_online_by_node.values())

    def task(self, upid: str) -> dict[str, Any]:
        """Return one Proxmox task in the form in which Proxmox lists tasks.

        The Proxmox task is read from the node that its UPID names. It stays on the node where it was started, even if
        the VM moves to another node.
        """
        try:
            return as_listed_task({"upid": upid, **self.api.nodes(upid.split(":")[1]).tasks(upid).status.get()})
        except ResourceException as exc:
            if exc.status_code == 400:  # Proxmox has removed the task's log, and answers `no such task`
                return {"upid": upid, "type": upid.split(":")[5], "status": "no such task"}
            raise

    def vmids_in_log(self, task: dict[str, Any]) -> set[int]:
        """Return the VMIDs in the log of a clone task. The members of `task` contain only the template's VMID."""
        return vmids_in(self.log(task["upid"]))

    def log(self, upid: str) -> list[str]:
        """Return the lines of a Proxmox task's log, at most LOG_PAGE_LINES * MAX_LOG_PAGES. Long lines are cut off."""
        log, lines, length = self.api.nodes(upid.split(":")[1]).tasks(upid).log, [], 0
        for page in range(MAX_LOG_PAGES):
            rows = log.get(start=page * LOG_PAGE_LINES, limit=LOG_PAGE_LINES)
            new_lines = [str(row.get("t", ""))[:MAX_LOG_LINE_CHARACTERS] for row in rows[:LOG_PAGE_LINES]]
            lines += new_lines
            length += sum(map(len, new_lines))
            if len(rows) < LOG_PAGE_LINES or length > MAX_LOG_CHARACTERS:
                break
        self.log_end_by_upid[upid] = [line[:MAX_QUOTED_CHARACTERS] for line in lines if line][-LOG_END_LINES:]
        return lines

    def percent_of(self, upid: str) -> str:
        """Return the last percentage in the log of a running Proxmox task, such as `40`; '' if the log has none."""
        try:
            lines = self.log(upid)
        except REQUEST_ERRORS:
            return ""  # the caller, which waits for the Proxmox task, notices failed requests itself
        percents = [found.group(1) for line in lines if (found := PERCENT.search(line))]
        return percents[-1] if percents else ""

    def snapshots(self, node: str, vmid: int) -> list[dict[str, Any]]:
        """Return the VM's snapshots, oldest first.

        The member `unfinished` is '' for a complete snapshot. It is `prepare` while Proxmox creates the snapshot and
        `delete` while Proxmox deletes it. If the creation or the deletion is interrupted, this value remains.
        """
        rows = [row for row in self.guest(node, vmid).snapshot.get() if row.get("name") != "current"]
        rows.sort(key=lambda row: int(row.get("snaptime") or 0))
        return [
            {
                "name": row["name"],
                "taken_at": int(row.get("snaptime") or 0),
                "unfinished": str(row.get("snapstate") or ""),
            }
            for row in rows
        ]

    def volume_ids(self, node: str, storage: str, vmid: int) -> list[str]:
        """Return the ids of the volumes on a storage that are disks of the guest with this VMID."""
        return [str(row["volid"]) for row in self.volume_rows(node, storage, vmid)]

    def volume_rows(self, node: str, storage: str, vmid: int) -> list[dict[str, Any]]:
        """Return the storage's rows about disks of this VMID. Some storages omit `ctime`, a disk's creation time."""
        rows = self.api.nodes(node).storage(storage).content.get(vmid=vmid)
        return [row for row in rows if row.get("content", "images") in DISK_CONTENT]

    def storage_rows(self, node: str) -> dict[str, dict[str, Any]]:
        """Return the rows of Proxmox's list of storages that are about this node, by the storage's name.

        The list contains only storages on which the login has a privilege.
        """
        if "storage" not in self._rows_by_type:
            self._rows_by_type["storage"] = list(self.api.cluster.resources.get(type="storage"))
        return {str(row["storage"]): row for row in self._rows_by_type["storage"] if row.get("node") == node}

    def node_rows(self) -> list[dict[str, Any]]:
        """Return the rows of Proxmox's list of nodes. They contain `maxcpu` only if the login has Sys.Audit."""
        if "node" not in self._rows_by_type:
            self._rows_by_type["node"] = list(self.api.nodes.get())
        return self._rows_by_type["node"]

    def has_feature(self, node: str, vmid: int, feature: str) -> bool:
        """Return whether the guest supports a feature: whether the storage of each of its disks supports it.

        `feature` is `snapshot`, or `clone` for linked clones.
        """
        return is_yes(self.guest(node, vmid).feature.get(feature=feature).get("hasFeature"))

    def guest_disk_storages(self, node: str) -> set[str]:
        """Return the node's storages that may contain disks of guests, as far as the login has a privilege on them."""
        contents = {name: str(row.get("content", "images")) for name, row in self.storage_rows(node).items()}
        return {name for name, content in contents.items() if {*content.split(",")} & {*DISK_CONTENT}}

    def configuration_items(self, node: str, vmid: int) -> list[tuple[str, Any]]:
        """Return the keys and values of the guest's configuration: all current values, then all pending values."""
        rows = self.guest(node, vmid).pending.get()
        return [(row["key"], row[member]) for member in ("value", "pending") for row in rows if member in row]

    def backups(self, node: str, storage: str, vmid: int) -> list[str]:
        """Return the volume ids of the VM's backup archives on a storage, oldest first."""
        rows = list(self.api.nodes(node).storage(storage).content.get(content="backup", vmid=vmid))
        return [str(row["volid"]) for row in sorted(rows, key=lambda row: int(row.get("ctime") or 0))]

    def error_of(self, task: dict[str, Any]) -> str:
        """Return the error text of a failed Proxmox task: its status.

        If the status does not name the cause of the failure, the cause is read from the Proxmox task's log and added to
        the text. If the log cannot be read, only the status is returned.
        """
        status = str(task["status"])
        if has_failure_cause(status):
            return status
        try:
            return error_with_cause(status, self.log(task["upid"]))
        except REQUEST_ERRORS:
            return status

    def addresses(self, node: str, vmid: int, macs: list[str]) -> list[str] | None:
        """Return the IP addresses of the NICs with these MAC addresses.

        Return [] if a later request may return addresses, and None if a repetition is useless. If the answer has an
        unexpected form, return None.
        """
        try:
            if self.kind == "lxc":
                return guest_facts.container_addresses(self.guest(node, vmid).interfaces.get(), macs)
            answer = self.api.nodes(node).qemu(vmid).agent("network-get-interfaces").get()
            return guest_facts.reachable_addresses(answer.get("result"), macs)
        except REQUEST_ERRORS as exc:
            # Proxmox refuses the request if no guest agent is configured, or if the login may not ask the guest agent.
            # Then waiting does not help.
            is_temporary = not isinstance(exc, ResourceException) or re.search("not running|got timeout", str(exc))
            return [] if is_temporary else None
        except UNREADABLE_ANSWER_ERRORS:
            return None
