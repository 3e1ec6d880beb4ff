# SPDX-License-Identifier: Apache-2.0
"""Reads one VM's facts from Proxmox, and waits for a wanted state, in one Ansible task. Changes nothing.

An action plugin runs in the process of ansible-playbook. So a look-up does not need a module process (0.45 s of CPU
each), all requests of a look-up share one connection, and each poll of a wait is a request instead of a module process.

This plugin does three things that the modules of community.proxmox cannot do:
- The modules return before the outcome of a change is known, or do not notice that a Proxmox task failed. With the
  argument `wait_for`, this plugin waits until the Proxmox task has ended. The fact `task_error` contains its error.
- If Proxmox's list of guests does not contain a VM, this does not prove that the VM does not exist. The fact `absence`
  states whether the VM's absence is proven, and if not, why.
- A configuration may have pending values, which take effect only after a reboot of the VM. The fact `config` contains
  the pending value of each key that has one, and the current value of every other key. The fact `pending` lists the
  keys that have a pending value.
"""

from __future__ import annotations

import re
import time
import urllib.parse
from typing import Any

import urllib3
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from proxmoxer import ProxmoxAPI
from proxmoxer.core import AuthenticationError, ResourceException

GIB = 1024**3
#: Factors of the units in which Proxmox writes the size of a drive.
UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": GIB, "T": 1024 * GIB}
REQUEST_TIMEOUT_S = 30
#: How long the VM may need to reach its new state after its Proxmox task ended successfully.
SETTLE_S = 5.0
#: How long a rebooted VM may need. The Proxmox task of a reboot ends when the VM is off. Another Proxmox task starts
#: the VM, and Proxmox does not list it for our API token.
REBOOT_SETTLE_S = 60.0
#: Maximum time without an answer from Proxmox during a wait. After it the look-up fails.
MAX_OUTAGE_S = 30.0
#: How long a new clone may be missing in Proxmox's answers while a clone task of its template runs.
MAX_CLONE_INVISIBLE_S = 20.0
#: HTTP statuses with which Proxmox reports that another node does not answer.
NODE_DOWN_STATUSES = range(595, 600)
#: Types of Proxmox tasks that restart a guest. community.proxmox restarts a container by a stop and a start
#: (`vzstart`).
REBOOTS = ("qmreboot", "qmreset", "vzstart")
#: The time between two polls during a wait grows from FIRST_POLL_S to MAX_POLL_S.
FIRST_POLL_S, MAX_POLL_S = 0.2, 2.0
#: The marker: the line of a VM's description that names the service of the VM.
MARKER = re.compile(r"^smith-uid=(\S+)\s*?$", re.MULTILINE)
#: Keys of a container's volumes and of a VM's disks in the configuration.
VOLUME_KEY = re.compile(r"rootfs\Z|mp\d+\Z")
DISK_KEY = re.compile(r"(?:scsi|virtio|sata|ide)\d+\Z")
#: When the key `boot` names no disk, Proxmox boots from the first disk in this order of buses.
BOOT_BUSES = ("scsi", "virtio", "sata", "ide")
NIC_KEY = re.compile(r"net\d+\Z")
MAC = re.compile(r"=((?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2})")
#: Locks that a VM has while Proxmox is creating it.
UNFINISHED = ("clone", "create")
#: Maximum number of clone tasks of one template whose logs are read.
MAX_LOGS_READ = 16
#: The exceptions that a failed request to Proxmox raises.
FAILED_CALL = (ResourceException, AuthenticationError, OSError, urllib3.exceptions.HTTPError)
#: The arguments of the plugin, in the format of Ansible's argument specs.
ARGUMENTS = {
    "connection": {"type": "dict", "required": True},
    "ca_bundle": {"type": "str", "default": ""},
    "vmid": {"type": "int", "required": True},
    "kind": {"type": "str", "default": "qemu", "choices": ["qemu", "lxc"]},
    "node": {"type": "str", "default": ""},
    "template_vmid": {"type": "int", "default": 0},
    "template": {"type": "str", "default": ""},
    "template_node": {"type": "str", "default": ""},  # the node where an earlier look-up found the template
    "prove_absence": {"type": "bool", "default": False},
    "snapshots": {"type": "bool", "default": False},
    "backups": {"type": "str", "default": ""},
    "target_node": {"type": "str", "default": ""},
    "wait_for": {
        "type": "str",
        "default": "nothing",
        "choices": [
            *("nothing", "unlocked", "created", "cloned", "running", "stopped", "absent", "idle", "quiet"),
            *("migrated", "restarted"),
        ],
    },
    "known_tasks": {"type": "list", "elements": "str"},
    "timeout_s": {"type": "float", "default": 240},
    "deadline": {"type": "float", "default": 0},
    "address_timeout_s": {"type": "float", "default": -1},
}


class ActionModule(ActionBase):
    """Validates the arguments, executes the look-up, and reports a failure with Proxmox's error text."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the facts. Their keys are the keys of `absent` and of `LookUp.answer`."""
        super().run(tmp, task_vars)
        _checked, arguments = self.validate_argument_spec(ARGUMENTS)
        try:
            cluster = Cluster(connect(arguments["connection"], arguments["ca_bundle"]), arguments["kind"])
            return {"changed": False, **LookUp(cluster, arguments).answer()}
        except FAILED_CALL as exc:
            raise AnsibleActionFail(error_text(exc)) from exc


def connect(connection: dict[str, Any], ca_bundle: str) -> Any:
    """Return an API client for the login `connection`, whose keys are parameter names of community.proxmox's modules.

    If the login has a password and a token, the password is used, as the modules do.
    """
    verify: bool | str = bool(connection.get("validate_certs", True))
    if verify and ca_bundle:
        verify = ca_bundle
    login = {"user": connection.get("api_user", "")}
    if connection.get("api_port"):
        login["port"] = connection["api_port"]
    if connection.get("api_password"):
        login["password"] = connection["api_password"]
    else:
        login |= {
            "token_name": connection.get("api_token_id", ""),
            "token_value": connection.get("api_token_secret", ""),
        }
    if not connection.get("api_host"):
        raise AnsibleActionFail("PVE_AUTH: PROXMOX_HOST is not set, nor is api_host in SMITH_CREDENTIALS_FILE")
    return ProxmoxAPI(connection["api_host"], verify_ssl=verify, timeout=REQUEST_TIMEOUT_S, **login)


def error_text(exc: BaseException) -> str:
    """Return the exception's text, or its class name if it has none."""
    return str(exc).strip() or type(exc).__name__


def is_final(exc: BaseException) -> bool:
    """Return True if Proxmox refused the request, so that the same request would fail again.

    Return False if the answer was lost or Proxmox had an internal error.
    """
    return isinstance(exc, AuthenticationError) or getattr(exc, "status_code", 599) < 500


class Cluster:
    """The requests to one Proxmox cluster. `kind` is `qemu` for virtual machines, `lxc` for containers."""

    def __init__(self, api: Any, kind: str) -> None:
        self.api = api
        self.kind = kind

    def guest(self, node: str, vmid: int) -> Any:
        """Return the API resource of the VM or container."""
        return getattr(self.api.nodes(node), self.kind)(vmid)

    def facts(self, node: str, vmid: int) -> dict[str, Any] | None:
        """Return the VM's facts from the endpoints of this VM on this node; None if the node does not have the VM."""
        guest = self.guest(node, vmid)
        try:
            settings = guest.pending.get()
            status = guest.status.current.get()
        except ResourceException as exc:
            if "does not exist" in str(exc):
                return None
            raise
        facts = read_settings(settings, status) if self.kind == "qemu" else read_container(settings, status)
        return {"exists": True, "kind": self.kind, "vmid": vmid, "node": node, **facts}

    def is_being_created(self, node: str, vmid: int) -> bool:
        """Return True while Proxmox is cloning or creating the VM. Sends one request."""
        try:
            return self.guest(node, vmid).status.current.get().get("lock") in UNFINISHED
        except ResourceException as exc:
            if "does not exist" in str(exc):
                return False
            raise

    def listed(self) -> list[dict[str, Any]]:
        """Return Proxmox's list of guests. It contains only the guests for which the API token has a privilege."""
        return list(self.api.cluster.resources.get(type="vm"))

    def row_of(self, vmid: int, rows: list[dict[str, Any]] | None) -> dict[str, Any] | None:
        """Return the row of this VMID in the list of guests `rows`. If `rows` is None, read a new list."""
        return next((row for row in rows or self.listed() if int(row.get("vmid", 0)) == vmid), None)

    def find(self, vmid: int, hint: str, rows: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """Return the VM's facts. First try the node `hint`, then the node that the list of guests states.

        `rows` is a current list of guests. If it is None, read the list when it is needed.
        """
        try:
            found = self.facts(hint, vmid) if hint else None
        except ResourceException as exc:
            if exc.status_code not in NODE_DOWN_STATUSES:
                raise
            found, row = None, self.row_of(vmid, rows)
            if row is None or row.get("node") == hint:
                raise  # the VM is still on the node that does not answer
        if found:
            return found
        row = self.row_of(vmid, rows)
        if row is None:
            return absent(vmid)
        if row.get("type") != self.kind:
            return absent(vmid) | {"exists": True, "kind": str(row.get("type")), "node": str(row.get("node", ""))}
        return self.facts(str(row["node"]), vmid) or absent(vmid)

    def absence(self, vmid: int, hint: str) -> dict[str, Any]:
        """Return whether it is proven that the VM does not exist.

        The proof has four parts: the token has VM.Audit for the VMID, the cluster has a quorum, no node that is online
        has the VM, and the VMID is free. `hint` is the node on which the VM is expected; it must be online.
        """
        rights = self.api.access.permissions.get(path=f"/vms/{vmid}")
        if not any("VM.Audit" in privileges for privileges in rights.values()):
            return not_proven("PVE_PERMISSION", f"the token lacks VM.Audit on /vms/{vmid}, so it cannot see VM {vmid}")
        nodes, is_quorate = self.membership()
        if not is_quorate:
            return not_proven("PVE_NO_QUORUM", "the cluster has no quorum")
        down = sorted(name for name, online in nodes.items() if not online)
        if hint in down:
            return not_proven("NODE_DOWN", f"node {hint} does not answer")
        for node in sorted(set(nodes) - set(down)):
            if self.facts(node, vmid):
                return not_proven("PVE_CONFLICT", f"VM {vmid} is on node {node}, although the list does not show it")
        if not self.is_free(vmid):
            code = "NODE_DOWN" if down else "PVE_CONFLICT"
            return not_proven(code, f"VMID {vmid} is taken, although no node that answers has it")
        return {"is_proven": True, "code": "", "text": ""}

    def membership(self) -> tuple[dict[str, bool], bool]:
        """Return for each node whether it is online, and whether the cluster is quorate.

        `cluster/status` reports the quorum, but it needs the privilege Sys.Audit on `/`, which our token need not have.
        Without this privilege, the cluster counts as quorate if more than half of its nodes are online. Such a count
        does not include a witness device, so a quorate cluster may count as not quorate. This is safe, because then the
        absence is not proven.
        """
        try:
            rows = self.api.cluster.status.get()
        except ResourceException as exc:
            if exc.status_code != 403:
                raise
            online = {str(row["node"]): row.get("status") == "online" for row in self.api.nodes.get()}
            return online, sum(online.values()) * 2 > len(online)
        online = {str(row["name"]): bool(row.get("online")) for row in rows if row.get("type") == "node"}
        return online, all(bool(row.get("quorate")) for row in rows if row.get("type") == "cluster")

    def is_free(self, vmid: int) -> bool:
        """Return True if no guest has the VMID. Proxmox also checks guests for which the token has no privilege."""
        try:
            self.api.cluster.nextid.get(vmid=vmid)
        except ResourceException as exc:
            if exc.status_code == 400:
                return False
            raise
        return True

    def template(self, rows: list[dict[str, Any]], vmid: int, name: str, preferred_node: str) -> dict[str, Any]:
        """Return the facts of a template, found by its VMID or its name, and a `problem` if it was not found.

        If several templates have the name, a template on `preferred_node` is preferred.
        """
        wanted = f"template {vmid or name}"
        rows = [row for row in rows if row.get("template") and row.get("type") == "qemu"]
        rows = [row for row in rows if (int(row["vmid"]) == vmid if vmid else row.get("name") == name)]
        rows.sort(key=lambda row: (row.get("node") != preferred_node, row.get("status") == "unknown", row["vmid"]))
        found = self.facts(str(rows[0]["node"]), int(rows[0]["vmid"])) if rows else None
        if not found:
            return {"exists": False, "problem": f"NOT_FOUND: {wanted} does not exist, or the token may not see it"}
        return {**found, "problem": ""}

    def tasks(self, node: str, vmid: int) -> list[dict[str, Any]]:
        """Return the Proxmox tasks of this VM that Proxmox lists for the API token, newest first."""
        tasks = list(self.api.nodes(node).tasks.get(vmid=vmid, source="all", limit=50)) if node else []
        return newest_first(tasks)

    def log_mentions(self, task: dict[str, Any], vmid: int) -> bool:
        """Return True if the log of a clone task names this VMID.

        The fields of the Proxmox task name only the template.
        """
        lines = self.api.nodes(task["node"]).tasks(task["upid"]).log.get()
        return any(re.search(rf"\b(?:vm-)?{vmid}\b", str(line.get("t", ""))) for line in lines)

    def snapshots(self, node: str, vmid: int) -> list[dict[str, Any]]:
        """Return the VM's snapshots, oldest first."""
        rows = [row for row in self.guest(node, vmid).snapshot.get() if row.get("name") != "current"]
        rows.sort(key=lambda row: int(row.get("snaptime") or 0))
        return [{"name": row["name"], "taken_at": int(row.get("snaptime") or 0)} for row in rows]

    def backups(self, node: str, storage: str, vmid: int) -> list[str]:
        """Return the volume ids of the VM's backup archives on a storage, oldest first."""
        rows = list(self.api.nodes(node).storage(storage).content.get(content="backup", vmid=vmid))
        return [str(row["volid"]) for row in sorted(rows, key=lambda row: int(row.get("ctime") or 0))]

    def error_of(self, task: dict[str, Any]) -> str:
        """Return the error text of a failed Proxmox task.

        It is usually the status. A failed backup has only the status `job errors`, so its error is read from the log.
        """
        status = str(task["status"])
        if status != "job errors":
            return status
        lines = [str(line.get("t", "")) for line in self.api.nodes(task["node"]).tasks(task["upid"]).log.get()]
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
        return errors[0] if errors else status

    def addresses(self, node: str, vmid: int, macs: list[str]) -> list[str] | None:
        """Return the IP addresses of the NICs with these MAC addresses.

        Return [] if the guest has not reported any yet, None if the guest agent will not report any.
        """
        if self.kind == "lxc":
            return container_addresses(self.guest(node, vmid).interfaces.get() or [], macs)
        try:
            answer = self.api.nodes(node).qemu(vmid).agent("network-get-interfaces").get()
        except ResourceException as exc:
            if "not running" in str(exc) or "got timeout" in str(exc):
                return []
            return None  # the guest agent is not configured or not permitted, so waiting does not help
        return usable_addresses(answer.get("result") or [], macs)


class LookUp:
    """One look-up of a VM, which may wait until the VM has a wanted state."""

    def __init__(self, cluster: Cluster, arguments: dict[str, Any]) -> None:
        self.cluster = cluster
        self.arguments = arguments
        self.vmid: int = arguments["vmid"]
        self.wanted: str = arguments["wait_for"]
        self.started = time.monotonic()
        #: When Proxmox last answered (monotonic time). `-inf` makes a wait for `unlocked` fail when its first answer is
        #: lost.
        self.answered_at = float("-inf") if self.wanted == "unlocked" else self.started
        self.busy_at = self.started  #: when a Proxmox task of the change was last seen running
        #: The end of the wait, in seconds since 1970. A playbook passes it to its next look-up, which is an Ansible
        #: task of its own.
        self.deadline: float = arguments["deadline"] or time.time() + arguments["timeout_s"]
        self.template: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] | None = None  #: the list of guests that was read to find the template

    def answer(self) -> dict[str, Any]:
        """Look up the VM, wait for the wanted state, and return the facts with the additional facts that are requested.

        `found` is the VM's facts, `tasks` are the new Proxmox tasks of the VM, and `reached` states whether the VM has
        the wanted state.
        """
        self.template = self._find_template()
        found, tasks, reached = self._wait() if self.wanted != "nothing" else (self._look_up(), [], True)
        if not found["exists"] and self.arguments["prove_absence"]:
            found["absence"] = self.cluster.absence(self.vmid, self.arguments["node"])
        # If the VMID belongs to a container instead of a VM, or vice versa, the endpoints that are used below do not
        # exist.
        is_of_kind = found["exists"] and found["kind"] == self.cluster.kind
        if is_of_kind and self.arguments["snapshots"]:
            found["snapshots"] = self.cluster.snapshots(found["node"], self.vmid)
        if is_of_kind and self.arguments["backups"]:
            found["backups"] = self.cluster.backups(found["node"], self.arguments["backups"], self.vmid)
        if self.arguments["target_node"]:
            online = self.cluster.membership()[0].get(self.arguments["target_node"])
            found["target"] = {"exists": online is not None, "is_online": bool(online)}
        if found.get("status") == "running" and self.arguments["address_timeout_s"] >= 0:
            found["ip_addresses"] = self._addresses(found["node"], macs_of(found["config"]))
        return {
            **found,
            "template": self.template,
            "reached": reached,
            "task_error": self._task_error(tasks),
            "upids": [task["upid"] for task in reversed(tasks)],
            "known_tasks": self._known_tasks(found, tasks),
            "deadline": self.deadline,
            "looked_at": int(time.time()),
        }

    def _find_template(self) -> dict[str, Any]:
        vmid, name = self.arguments["template_vmid"], self.arguments["template"]
        if self.arguments["template_node"]:
            return {"exists": True, "node": self.arguments["template_node"], "vmid": vmid, "problem": ""}
        if not (vmid or name):
            return {}
        self.rows = self.cluster.listed()
        return self.cluster.template(self.rows, vmid, name, self.arguments["node"])

    def _look_up(self) -> dict[str, Any]:
        rows, self.rows = self.rows, None  # only the first look-up uses the list; each later one reads a new list
        return self.cluster.find(self.vmid, self.arguments["node"], rows)

    def _known_tasks(self, found: dict[str, Any], tasks: list[dict[str, Any]]) -> list[str]:
        """Return the UPIDs of the Proxmox tasks that exist now.

        The look-up after the next change gets them as the argument `known_tasks`, so that it finds the change's own
        tasks.
        """
        if self.wanted == "cloned":  # the next change is made to the clone, whose tasks Proxmox lists under its VMID
            return [task["upid"] for task in self.cluster.tasks(found["node"], self.vmid)]
        if self.arguments["known_tasks"] is None:
            return [task["upid"] for task in self._listed_tasks(found)]
        return [*self.arguments["known_tasks"], *(task["upid"] for task in tasks)]

    def _new_tasks(self, found: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the VM's Proxmox tasks that did not exist before the change."""
        known = self.arguments["known_tasks"]
        return [] if known is None else [task for task in self._listed_tasks(found) if task["upid"] not in known]

    def _listed_tasks(self, found: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the VM's Proxmox tasks. Proxmox lists a clone task as a task of the template, not of the clone."""
        if self.template.get("exists") and (self.wanted == "cloned" or not found["exists"]):
            return self.cluster.tasks(self.template["node"], self.template["vmid"])
        if self.wanted == "migrated":  # Proxmox lists the task of a migration on the source node
            return self.cluster.tasks(self.arguments["node"], self.vmid)
        return self.cluster.tasks(found["node"] or self.arguments["node"], self.vmid)

    # ------------------------------------------------------------------ waiting

    def _wait(self) -> tuple[dict[str, Any], list[dict[str, Any]], bool]:
        """Poll until the VM has the wanted state, cannot reach it, or the deadline has passed.

        Return the VM's facts, the Proxmox tasks of the change, and whether the wanted state is reached.
        """
        poll_interval_s = FIRST_POLL_S
        found, tasks = absent(self.vmid), []
        while True:
            is_past_deadline = time.time() >= self.deadline
            try:
                # After the deadline, the last poll is always a full look-up, because it reads the Proxmox tasks'
                # outcomes.
                if is_past_deadline or not self._is_still_cloned(found):
                    found = self._look_up()
                    tasks = self._new_tasks(found)
            except FAILED_CALL as exc:
                # After a lost answer, the next poll repeats the request, so the look-up does not fail. A wait for
                # `unlocked` is an exception: it is made before the first change, so it may fail, and the agent retries
                # the job.
                if is_past_deadline or is_final(exc) or time.monotonic() - self.answered_at > MAX_OUTAGE_S:
                    raise
            else:
                self.answered_at = time.monotonic()
                self.busy_at = self.answered_at if any(is_running(task) for task in tasks) else self.busy_at
                reached = self._is_reached(found, tasks)
                if reached or is_past_deadline or self._cannot_be_reached(found, tasks):
                    return found, self._own(tasks), reached
            time.sleep(poll_interval_s)
            poll_interval_s = min(poll_interval_s * 1.5, MAX_POLL_S)

    def _is_still_cloned(self, found: dict[str, Any]) -> bool:
        """Return True while a clone has its lock.

        Other facts do not change during this time, so only the lock is read.
        """
        is_begun = self.wanted == "cloned" and found["exists"] and found["lock"] in UNFINISHED
        return is_begun and self.cluster.is_being_created(found["node"], self.vmid)

    def _is_reached(self, found: dict[str, Any], tasks: list[dict[str, Any]]) -> bool:
        """Return True if the VM has the wanted state.

        For most states, the Proxmox tasks of the change must have ended, too.
        """
        done = not any(is_running(task) for task in tasks)
        is_there = bool(found["exists"] and found["lock"] not in UNFINISHED)
        rebooted = any(task["type"] in REBOOTS and not failed(task) for task in tasks)
        answers = {
            "unlocked": is_there,
            "cloned": is_there,
            "created": is_there and done,
            "quiet": is_there and done,
            "absent": not found["exists"],
            "idle": bool(tasks) and done and not any(failed(task) for task in tasks),
            "migrated": found["node"] == self.arguments["target_node"] and done and found["lock"] != "migrate",
            "restarted": rebooted and done and found["status"] == "running",
        }
        return answers.get(self.wanted, found["status"] == self.wanted and done)

    def _cannot_be_reached(self, found: dict[str, Any], tasks: list[dict[str, Any]]) -> bool:
        """Return True if no Proxmox task can still lead to the wanted state."""
        if self.wanted == "unlocked":
            return not found["exists"]
        is_busy = any(is_running(task) for task in tasks)
        if self.wanted == "cloned":
            return not found["exists"] and (not is_busy or time.monotonic() - self.started > MAX_CLONE_INVISIBLE_S)
        if is_busy or any(task["type"].startswith("ha") and not failed(task) for task in tasks):
            return False  # the HA manager changes the VM after its Proxmox task has ended
        settle_s = REBOOT_SETTLE_S if self.wanted == "restarted" and tasks else SETTLE_S
        return time.monotonic() - self.busy_at > settle_s or bool(tasks and failed(tasks[0]))

    def _own(self, tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the Proxmox tasks of this change.

        Other jobs may clone the same template at the same time. So of several clone tasks, only the tasks whose log
        names our VMID are returned.
        """
        if self.wanted != "cloned" or len(tasks) < 2:
            return tasks
        return [task for task in tasks[:MAX_LOGS_READ] if self.cluster.log_mentions(task, self.vmid)]

    def _task_error(self, tasks: list[dict[str, Any]]) -> str:
        return next((self.cluster.error_of(task) for task in tasks if failed(task)), "")

    def _addresses(self, node: str, macs: list[str]) -> list[str]:
        deadline = min(time.time() + self.arguments["address_timeout_s"], self.deadline)
        while True:
            found = self.cluster.addresses(node, self.vmid, macs)
            if found is None or found or time.time() >= deadline:
                return found or []
            time.sleep(1)


def newest_first(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort Proxmox tasks by their start time in seconds, then by `pstart`, their start time in clock ticks."""
    return sorted(tasks, key=lambda task: (int(task.get("starttime") or 0), int(task.get("pstart") or 0)), reverse=True)


def is_running(task: dict[str, Any]) -> bool:
    """Return True for a running Proxmox task, which has no status or the status RUNNING."""
    return task.get("status") in (None, "", "RUNNING")


def failed(task: dict[str, Any]) -> bool:
    """Return True for a finished Proxmox task whose status is neither OK nor WARNINGS."""
    return not is_running(task) and not re.match(r"OK\b|WARN", str(task["status"]))


def absent(vmid: int) -> dict[str, Any]:
    """Return the facts of a VM that was not found."""
    return {
        "exists": False,
        "kind": "",
        "vmid": vmid,
        "node": "",
        "name": "",
        "status": "absent",
        "is_template": False,
        "is_protected": False,
        "lock": "",
        "markers": [],
        "tags": [],
        "mac_address": "",
        "ip_addresses": [],
        "pending": [],
        **{"cores": 0, "sockets": 0, "memory_mib": 0, "disk": "", "disk_bytes": 0, "disk_gib": 0, "disks": {}},
        **{"has_cloud_init": False, "has_password": False, "ssh_public_keys": []},
        "config": {},
        "absence": {"is_proven": False, "code": "", "text": ""},
    }


def not_proven(code: str, text: str) -> dict[str, Any]:
    """Return the fact `absence` for a VM whose absence is not proven, with the error code and the reason."""
    return {"is_proven": False, "code": code, "text": text}


def read_settings(settings: list[dict[str, Any]], status: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of a VM from Proxmox's answers to `pending` and `status/current`. The password is left out.

    `current` contains the values that are in effect, `wanted` the values after the next reboot.
    """
    current = {item["key"]: item["value"] for item in settings if "value" in item}
    wanted = {item["key"]: item.get("pending", item.get("value")) for item in settings if not item.get("delete")}
    pending = sorted(item["key"] for item in settings if "pending" in item or item.get("delete"))
    has_password = wanted.pop("cipassword", None) is not None
    description = str(wanted.get("description", ""))
    disk = boot_disk(wanted)
    disk_bytes = size_of(str(wanted[disk])) if disk else 0
    return {
        "name": str(current.get("name", "")),
        "status": str(status.get("status", "")),
        "qmp_status": str(status.get("qmpstatus", "")),
        "is_template": bool(int(current.get("template") or 0)),
        "is_protected": str(current.get("protection", "0")) in ("1", "True"),
        "lock": str(current.get("lock") or status.get("lock") or ""),
        "markers": sorted({marker.lower() for marker in MARKER.findall(description)}),
        "tags": sorted({tag.lower() for tag in re.split(r"[,; ]+", str(wanted.get("tags", ""))) if tag}),
        "cores": int(wanted.get("cores") or 1),
        "sockets": int(wanted.get("sockets") or 1),
        "memory_mib": int(re.sub(r"\D.*", "", str(wanted.get("memory") or 512).removeprefix("current=")) or 512),
        "disk": disk,
        "disks": disks_of(wanted),
        "disk_bytes": disk_bytes,
        "disk_gib": -(-disk_bytes // GIB),
        "has_cloud_init": any("cloudinit" in str(value) for key, value in wanted.items() if DISK_KEY.match(key)),
        "has_password": has_password,
        "ssh_public_keys": urllib.parse.unquote(str(wanted.get("sshkeys", ""))).split("\n"),
        "mac_address": mac_of(str(wanted.get("net0", ""))),
        "ip_addresses": [],
        "pending": pending,
        "config": wanted,
        "absence": {"is_proven": False, "code": "", "text": ""},
    }


def read_container(settings: list[dict[str, Any]], status: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of a container. Its name is its host name, and its first disk is the root volume."""
    facts = read_settings(settings, status)
    config = facts["config"]
    volumes = {key: str(value) for key, value in config.items() if VOLUME_KEY.match(key)}
    size = size_of(volumes.get("rootfs", ""))
    return facts | {
        "name": str(next((item.get("value", "") for item in settings if item["key"] == "hostname"), "")),
        "cores": int(config.get("cores") or 0),  # 0 means no limit: the container may use all cores of the node
        "disk": "rootfs",
        "disk_bytes": size,
        "disk_gib": -(-size // GIB),
        "disks": {key: {"storage": text.partition(":")[0], "bytes": size_of(text)} for key, text in volumes.items()},
        "has_cloud_init": False,
    }


def boot_disk(config: dict[str, Any]) -> str:
    """Return the key of the boot disk; '' if there is none. CD-ROMs and the cloud-init drive do not count as disks."""
    disks = [key for key in config if DISK_KEY.match(key) and not is_cdrom(str(config[key]))]
    named = [*re.split(r"[;,=]", str(config.get("boot", ""))), str(config.get("bootdisk", ""))]
    first = next((key for key in named if key in disks), None)
    return first or min(disks, key=lambda key: (BOOT_BUSES.index(key.rstrip("0123456789")), key), default="")


def disks_of(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return each disk's storage and size. CD-ROMs and the cloud-init drive do not count as disks."""
    drives = {key: str(value) for key, value in config.items() if DISK_KEY.match(key) and not is_cdrom(str(value))}
    return {key: {"storage": drive.partition(":")[0], "bytes": size_of(drive)} for key, drive in drives.items()}


def is_cdrom(drive: str) -> bool:
    """Return True for a CD-ROM or a cloud-init drive."""
    return "media=cdrom" in drive or "cloudinit" in drive or drive.startswith(("none", "cdrom"))


def size_of(drive: str) -> int:
    """Return the size in bytes of a drive; 0 if its value in the configuration has no size."""
    found = re.search(r"(?:^|,)size=(\d+(?:\.\d+)?)([KMGT]?)", drive)
    return int(float(found.group(1)) * UNITS[found.group(2)]) if found else 0


def mac_of(interface: str) -> str:
    """Return the MAC address in the value of a NIC (`net0`, `net1`, …)."""
    found = MAC.search(interface)
    return found.group(1).upper() if found else ""


def macs_of(config: dict[str, Any]) -> list[str]:
    """Return the MAC addresses of the VM's NICs in order of their numbers."""
    nics = sorted((int(key[3:]), str(value)) for key, value in config.items() if NIC_KEY.match(key))
    return [mac for _number, value in nics if (mac := mac_of(value))]


def container_addresses(interfaces: list[dict[str, Any]], macs: list[str]) -> list[str]:
    """Return a container's IP addresses that are reachable from outside; `usable_addresses` selects them.

    Proxmox reports `interfaces` for a container in another format than for a VM.
    """
    listed = [
        {
            "name": nic.get("name"),
            "hardware-address": nic.get("hwaddr") or nic.get("hardware-address"),
            "ip-addresses": [{"ip-address": str(nic[key]).partition("/")[0]}],
        }
        for key in ("inet", "inet6")
        for nic in interfaces
        if nic.get(key)
    ]
    return usable_addresses(listed, macs)


def usable_addresses(interfaces: list[dict[str, Any]], macs: list[str]) -> list[str]:
    """Return the IP addresses that are reachable from outside, IPv4 first, in the order of the VM's NICs.

    `macs` contains the MAC addresses of the VM's NICs. Interfaces with other MAC addresses are bridges and tunnels
    inside the guest, so their addresses are left out. If `macs` is empty, for example because a physical NIC is passed
    through to the VM, the addresses of all interfaces are used.
    """
    found = []
    for nic in interfaces:
        mac = str(nic.get("hardware-address") or "").upper()
        if nic.get("name") == "lo" or (macs and mac not in macs):
            continue
        for item in nic.get("ip-addresses") or []:
            ip = str(item.get("ip-address", ""))
            if ip and not re.match(r"127\.|169\.254\.|::1\Z|fe[89ab][0-9a-f]:", ip.lower()):
                found.append((":" in ip, macs.index(mac) if macs else 0, ip))
    found.sort(key=lambda each: each[:2])
    return list(dict.fromkeys(ip for _is_v6, _nic, ip in found))
