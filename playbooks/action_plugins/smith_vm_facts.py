# SPDX-License-Identifier: Apache-2.0
"""What Proxmox says of one VM, in one Ansible task that only ever reads.

An action plugin, because it then runs inside ansible-playbook: no module process to start (0.45 CPU-s each), one
connection for all its questions, and a wait costs requests instead of module runs. Changes never happen here.

Three things the stock modules cannot do, and why the roles ask this instead:
- they return before the outcome is known, or wait blindly: `wait_for` follows the Proxmox task itself, and
  `task_error` has the task's own last words;
- an empty list proves nothing: `absence` says whether "not there" was proven, and what stood in the way;
- a configuration's pending values: `config` is what was asked for, `pending` what still waits for a reboot.
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
UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": GIB, "T": 1024 * GIB}
REQUEST_TIMEOUT_S = 30
#: How long a VM may look as before after its Proxmox task ended well: the list and the guest lag a little.
SETTLE_S = 5.0
#: A reboot's task ends when the VM is off; Proxmox starts it again after that, in a task of its own that we cannot see.
REBOOT_SETTLE_S = 60.0
#: How long Proxmox may stay silent while we wait, before its silence is the result.
SILENCE_S = 30.0
#: How long a new clone may stay invisible while a clone of its template runs.
CLONE_APPEARS_S = 20.0
#: Proxmox's own statuses for "the node did not answer me".
NODE_DOWN_STATUSES = range(595, 600)
#: A container is restarted by stopping and starting it: its module knows no other way.
REBOOTS = ("qmreboot", "qmreset", "vzstart")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 2.0
MARKER = re.compile(r"^smith-uid=(\S+)\s*?$", re.MULTILINE)
VOLUME_KEY = re.compile(r"rootfs\Z|mp\d+\Z")
DISK_KEY = re.compile(r"(?:scsi|virtio|sata|ide)\d+\Z")
#: The order in which Proxmox looks for a boot disk when none is named.
BOOT_BUSES = ("scsi", "virtio", "sata", "ide")
NIC_KEY = re.compile(r"net\d+\Z")
MAC = re.compile(r"=((?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2})")
UNFINISHED = ("clone", "create")
#: How many clones of one template at the same time we can tell apart.
LOGS_READ = 16
FAILED_CALL = (ResourceException, AuthenticationError, OSError, urllib3.exceptions.HTTPError)
ARGUMENTS = {
    "connection": {"type": "dict", "required": True},
    "ca_bundle": {"type": "str", "default": ""},
    "vmid": {"type": "int", "required": True},
    "kind": {"type": "str", "default": "qemu", "choices": ["qemu", "lxc"]},
    "node": {"type": "str", "default": ""},
    "template_vmid": {"type": "int", "default": 0},
    "template": {"type": "str", "default": ""},
    "template_node": {"type": "str", "default": ""},  # says that it was found there, with `template_vmid`, before
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
    """Ansible's door: checks the arguments, asks, turns every failure into Proxmox's words."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the facts; see the keys in `Cluster.facts` and `absent`."""
        super().run(tmp, task_vars)
        _checked, arguments = self.validate_argument_spec(ARGUMENTS)
        try:
            cluster = Cluster(connect(arguments["connection"], arguments["ca_bundle"]), arguments["kind"])
            return {"changed": False, **Question(cluster, arguments).answer()}
        except FAILED_CALL as exc:
            raise AnsibleActionFail(words_of(exc)) from exc


def connect(connection: dict[str, Any], ca_bundle: str) -> Any:
    """Open the API with the modules' own parameter names; a password wins over a token, as it does there."""
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


def words_of(exc: BaseException) -> str:
    """Return what Proxmox, or the connection to it, said."""
    return str(exc).strip() or type(exc).__name__


def is_final(exc: BaseException) -> bool:
    """Tell a refusal, which another poll would only meet again, from an answer that was lost."""
    return isinstance(exc, AuthenticationError) or getattr(exc, "status_code", 599) < 500


class Cluster:
    """Questions to one cluster."""

    def __init__(self, api: Any, kind: str) -> None:
        self.api = api
        self.kind = kind

    def guest(self, node: str, vmid: int) -> Any:
        """The VM's, or the container's, own endpoints."""
        return getattr(self.api.nodes(node), self.kind)(vmid)

    def facts(self, node: str, vmid: int) -> dict[str, Any] | None:
        """What the VM's own endpoints say, or None when this node has no such VM."""
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

    def is_being_made(self, node: str, vmid: int) -> bool:
        """Tell by one request whether a clone is still under way on this VMID."""
        try:
            return self.guest(node, vmid).status.current.get().get("lock") in UNFINISHED
        except ResourceException as exc:
            if "does not exist" in str(exc):
                return False
            raise

    def listed(self) -> list[dict[str, Any]]:
        """Every guest that the token may see."""
        return list(self.api.cluster.resources.get(type="vm"))

    def row_of(self, vmid: int, rows: list[dict[str, Any]] | None) -> dict[str, Any] | None:
        """Return this VMID's row of a list, or of a new one."""
        return next((row for row in rows or self.listed() if int(row.get("vmid", 0)) == vmid), None)

    def find(self, vmid: int, hint: str, rows: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """Find the VM on the node where it was last, or wherever the cluster's list has it; `rows` is a list of now."""
        try:
            found = self.facts(hint, vmid) if hint else None
        except ResourceException as exc:
            if exc.status_code not in NODE_DOWN_STATUSES:
                raise
            found, row = None, self.row_of(vmid, rows)
            if row is None or row.get("node") == hint:
                raise  # still there, as far as the cluster knows
        if found:
            return found
        row = self.row_of(vmid, rows)
        if row is None:
            return absent(vmid)
        if row.get("type") != self.kind:
            return absent(vmid) | {"exists": True, "kind": str(row.get("type")), "node": str(row.get("node", ""))}
        return self.facts(str(row["node"]), vmid) or absent(vmid)

    def absence(self, vmid: int, hint: str) -> dict[str, Any]:
        """Say whether "not there" can be believed: quorum, VM.Audit, every node up, and the VMID free."""
        rights = self.api.access.permissions.get(path=f"/vms/{vmid}")
        if not any("VM.Audit" in privileges for privileges in rights.values()):
            return unproven("PVE_PERMISSION", f"the token lacks VM.Audit on /vms/{vmid}, so it cannot see VM {vmid}")
        nodes, is_quorate = self.membership()
        if not is_quorate:
            return unproven("PVE_NO_QUORUM", "the cluster has no quorum")
        down = sorted(name for name, online in nodes.items() if not online)
        if hint in down:
            return unproven("NODE_DOWN", f"node {hint} does not answer")
        for node in sorted(set(nodes) - set(down)):
            if self.facts(node, vmid):
                return unproven("PVE_CONFLICT", f"VM {vmid} is on node {node}, although the list does not show it")
        if not self.is_free(vmid):
            code = "NODE_DOWN" if down else "PVE_CONFLICT"
            return unproven(code, f"VMID {vmid} is taken, although no node that answers has it")
        return {"is_proven": True, "code": "", "text": ""}

    def membership(self) -> tuple[dict[str, bool], bool]:
        """Return the nodes, each with whether it is online, and whether the cluster is quorate.

        `cluster/status` knows quorum but needs Sys.Audit on `/`, which nobody should have to grant us. Without it, a
        majority of nodes that see each other is what quorum means (one vote a node: a witness device is not counted,
        which errs on the safe side).
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
        """Ask the cluster, which also counts guests that the token may not see."""
        try:
            self.api.cluster.nextid.get(vmid=vmid)
        except ResourceException as exc:
            if exc.status_code == 400:
                return False
            raise
        return True

    def template(self, rows: list[dict[str, Any]], vmid: int, name: str, preferred_node: str) -> dict[str, Any]:
        """Find a template by VMID or by name; of several of one name, the one on the node that is wanted."""
        wanted = f"template {vmid or name}"
        rows = [row for row in rows if row.get("template") and row.get("type") == "qemu"]
        rows = [row for row in rows if (int(row["vmid"]) == vmid if vmid else row.get("name") == name)]
        rows.sort(key=lambda row: (row.get("node") != preferred_node, row.get("status") == "unknown", row["vmid"]))
        found = self.facts(str(rows[0]["node"]), int(rows[0]["vmid"])) if rows else None
        if not found:
            return {"exists": False, "problem": f"NOT_FOUND: {wanted} does not exist, or the token may not see it"}
        return {**found, "problem": ""}

    def tasks(self, node: str, vmid: int) -> list[dict[str, Any]]:
        """Our own Proxmox tasks of this VM, newest first. One that runs has no status."""
        tasks = list(self.api.nodes(node).tasks.get(vmid=vmid, source="all", limit=50)) if node else []
        return newest_first(tasks)

    def log_mentions(self, task: dict[str, Any], vmid: int) -> bool:
        """Tell whether a clone's log speaks of this VMID: the task itself carries the template's."""
        lines = self.api.nodes(task["node"]).tasks(task["upid"]).log.get()
        return any(re.search(rf"\b(?:vm-)?{vmid}\b", str(line.get("t", ""))) for line in lines)

    def snapshots(self, node: str, vmid: int) -> list[dict[str, Any]]:
        """The VM's snapshots, oldest first."""
        rows = [row for row in self.guest(node, vmid).snapshot.get() if row.get("name") != "current"]
        rows.sort(key=lambda row: int(row.get("snaptime") or 0))
        return [{"name": row["name"], "taken_at": int(row.get("snaptime") or 0)} for row in rows]

    def backups(self, node: str, storage: str, vmid: int) -> list[str]:
        """The VM's archives on a storage, oldest first."""
        rows = list(self.api.nodes(node).storage(storage).content.get(content="backup", vmid=vmid))
        return [str(row["volid"]) for row in sorted(rows, key=lambda row: int(row.get("ctime") or 0))]

    def error_of(self, task: dict[str, Any]) -> str:
        """A task's last words; a backup's say only `job errors`, and why is in its log."""
        status = str(task["status"])
        if status != "job errors":
            return status
        lines = [str(line.get("t", "")) for line in self.api.nodes(task["node"]).tasks(task["upid"]).log.get()]
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
        return errors[0] if errors else status

    def addresses(self, node: str, vmid: int, macs: list[str]) -> list[str] | None:
        """What the guest agent reports of NICs with these MAC addresses; None when there is no agent to wait for."""
        if self.kind == "lxc":
            return container_addresses(self.guest(node, vmid).interfaces.get() or [], macs)
        try:
            answer = self.api.nodes(node).qemu(vmid).agent("network-get-interfaces").get()
        except ResourceException as exc:
            if "not running" in str(exc) or "got timeout" in str(exc):
                return []
            return None  # not configured, or not allowed: waiting would not help
        return usable_addresses(answer.get("result") or [], macs)


class Question:
    """One look at a VM, and a wait until it is as it should be."""

    def __init__(self, cluster: Cluster, arguments: dict[str, Any]) -> None:
        self.cluster = cluster
        self.arguments = arguments
        self.vmid: int = arguments["vmid"]
        self.wanted: str = arguments["wait_for"]
        self.started = time.monotonic()
        self.heard = float("-inf") if self.wanted == "unlocked" else self.started  #: when Proxmox last answered
        self.busy = self.started  #: when one of the change's tasks was last seen running
        #: Wall clock, because it passes through playbook variables from one task to the next.
        self.deadline: float = arguments["deadline"] or time.time() + arguments["timeout_s"]
        self.template: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] | None = None  #: the list that the template was found in, for the first look

    def answer(self) -> dict[str, Any]:
        """Look, wait if asked to, and add what else was asked for."""
        self.template = self._find_template()
        found, tasks, reached = self._wait() if self.wanted != "nothing" else (self._look(), [], True)
        if not found["exists"] and self.arguments["prove_absence"]:
            found["absence"] = self.cluster.absence(self.vmid, self.arguments["node"])
        is_of_kind = found["exists"] and found["kind"] == self.cluster.kind  # another has no such endpoints
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
            "task_error": self._last_words(tasks),
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

    def _look(self) -> dict[str, Any]:
        rows, self.rows = self.rows, None  # a later look wants a later list
        return self.cluster.find(self.vmid, self.arguments["node"], rows)

    def _known_tasks(self, found: dict[str, Any], tasks: list[dict[str, Any]]) -> list[str]:
        """The tasks there are before the next change: a later look tells the change's own from them."""
        if self.wanted == "cloned":  # what its VMID went through before is not the clone's
            return [task["upid"] for task in self.cluster.tasks(found["node"], self.vmid)]
        if self.arguments["known_tasks"] is None:
            return [task["upid"] for task in self._listed_tasks(found)]
        return [*self.arguments["known_tasks"], *(task["upid"] for task in tasks)]

    def _new_tasks(self, found: dict[str, Any]) -> list[dict[str, Any]]:
        known = self.arguments["known_tasks"]
        return [] if known is None else [task for task in self._listed_tasks(found) if task["upid"] not in known]

    def _listed_tasks(self, found: dict[str, Any]) -> list[dict[str, Any]]:
        """The VM's own tasks; those of its template while there is only a clone to wait for."""
        if self.template.get("exists") and (self.wanted == "cloned" or not found["exists"]):
            return self.cluster.tasks(self.template["node"], self.template["vmid"])
        if self.wanted == "migrated":  # the task is the old node's
            return self.cluster.tasks(self.arguments["node"], self.vmid)
        return self.cluster.tasks(found["node"] or self.arguments["node"], self.vmid)

    # ------------------------------------------------------------------ waiting

    def _wait(self) -> tuple[dict[str, Any], list[dict[str, Any]], bool]:
        pause = FIRST_PAUSE_S
        found, tasks = absent(self.vmid), []
        while True:
            is_late = time.time() >= self.deadline
            try:
                if is_late or not self._is_still_cloned(found):  # at the end it counts what became of the tasks
                    found = self._look()
                    tasks = self._new_tasks(found)
            except FAILED_CALL as exc:
                # One lost answer while a clone runs is no reason to fail the job: the next poll tells. The first
                # look of all is another matter: nothing has been done yet, and retries are the executor's.
                if is_late or is_final(exc) or time.monotonic() - self.heard > SILENCE_S:
                    raise
            else:
                self.heard = time.monotonic()
                self.busy = self.heard if any(is_running(task) for task in tasks) else self.busy
                reached = self._is_reached(found, tasks)
                if reached or is_late or self._is_hopeless(found, tasks):
                    return found, self._own(tasks), reached
            time.sleep(pause)
            pause = min(pause * 1.5, LONGEST_PAUSE_S)

    def _is_still_cloned(self, found: dict[str, Any]) -> bool:
        """Nothing that we look for changes before the lock of a clone that was seen is gone, so ask for that alone."""
        is_begun = self.wanted == "cloned" and found["exists"] and found["lock"] in UNFINISHED
        return is_begun and self.cluster.is_being_made(found["node"], self.vmid)

    def _is_reached(self, found: dict[str, Any], tasks: list[dict[str, Any]]) -> bool:
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

    def _is_hopeless(self, found: dict[str, Any], tasks: list[dict[str, Any]]) -> bool:
        """Nothing is under way any more that could still bring what is wanted."""
        if self.wanted == "unlocked":
            return not found["exists"]
        is_busy = any(is_running(task) for task in tasks)
        if self.wanted == "cloned":
            return not found["exists"] and (not is_busy or time.monotonic() - self.started > CLONE_APPEARS_S)
        if is_busy or any(task["type"].startswith("ha") and not failed(task) for task in tasks):
            return False  # the HA manager acts later than its task
        patience_s = REBOOT_SETTLE_S if self.wanted == "restarted" and tasks else SETTLE_S
        return time.monotonic() - self.busy > patience_s or bool(tasks and failed(tasks[0]))

    def _own(self, tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Of several clones of one template at the same time, ours is the one whose log names our VMID."""
        if self.wanted != "cloned" or len(tasks) < 2:
            return tasks
        return [task for task in tasks[:LOGS_READ] if self.cluster.log_mentions(task, self.vmid)]

    def _last_words(self, tasks: list[dict[str, Any]]) -> str:
        return next((self.cluster.error_of(task) for task in tasks if failed(task)), "")

    def _addresses(self, node: str, macs: list[str]) -> list[str]:
        until = min(time.time() + self.arguments["address_timeout_s"], self.deadline)
        while True:
            found = self.cluster.addresses(node, self.vmid, macs)
            if found is None or found or time.time() >= until:
                return found or []
            time.sleep(1)


def newest_first(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort Proxmox's tasks. Of those of one second, its worker's start in clock ticks (`pstart`) tells the later."""
    return sorted(tasks, key=lambda task: (int(task.get("starttime") or 0), int(task.get("pstart") or 0)), reverse=True)


def is_running(task: dict[str, Any]) -> bool:
    """Proxmox lists a running task without a status, or as RUNNING."""
    return task.get("status") in (None, "", "RUNNING")


def failed(task: dict[str, Any]) -> bool:
    """A finished task that is neither OK nor OK with warnings."""
    return not is_running(task) and not re.match(r"OK\b|WARN", str(task["status"]))


def absent(vmid: int) -> dict[str, Any]:
    """The facts of a VM that is not there."""
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


def unproven(code: str, text: str) -> dict[str, Any]:
    """Why a VM that was not found may be there all the same."""
    return {"is_proven": False, "code": code, "text": text}


def read_settings(settings: list[dict[str, Any]], status: dict[str, Any]) -> dict[str, Any]:
    """Turn the answers of `pending` and `status/current` into facts. The password never becomes one."""
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
    """Turn a container's answers into the same facts. Its name is its host name, its first disk the root volume."""
    facts = read_settings(settings, status)
    config = facts["config"]
    volumes = {key: str(value) for key, value in config.items() if VOLUME_KEY.match(key)}
    size = size_of(volumes.get("rootfs", ""))
    return facts | {
        "name": str(next((item.get("value", "") for item in settings if item["key"] == "hostname"), "")),
        "cores": int(config.get("cores") or 0),  # without a limit, all that the node has
        "disk": "rootfs",
        "disk_bytes": size,
        "disk_gib": -(-size // GIB),
        "disks": {key: {"storage": text.partition(":")[0], "bytes": size_of(text)} for key, text in volumes.items()},
        "has_cloud_init": False,
    }


def boot_disk(config: dict[str, Any]) -> str:
    """Return the key of the disk that the VM boots from; CD-ROMs and the cloud-init drive are none."""
    disks = [key for key in config if DISK_KEY.match(key) and not is_cdrom(str(config[key]))]
    named = [*re.split(r"[;,=]", str(config.get("boot", ""))), str(config.get("bootdisk", ""))]
    first = next((key for key in named if key in disks), None)
    return first or min(disks, key=lambda key: (BOOT_BUSES.index(key.rstrip("0123456789")), key), default="")


def disks_of(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return each disk's storage and size; CD-ROMs and the cloud-init drive are none."""
    drives = {key: str(value) for key, value in config.items() if DISK_KEY.match(key) and not is_cdrom(str(value))}
    return {key: {"storage": drive.partition(":")[0], "bytes": size_of(drive)} for key, drive in drives.items()}


def is_cdrom(drive: str) -> bool:
    """Tell a CD-ROM, or a cloud-init drive, from a disk."""
    return "media=cdrom" in drive or "cloudinit" in drive or drive.startswith(("none", "cdrom"))


def size_of(drive: str) -> int:
    """Return a drive's size in bytes; 0 when Proxmox does not say."""
    found = re.search(r"(?:^|,)size=(\d+(?:\.\d+)?)([KMGT]?)", drive)
    return int(float(found.group(1)) * UNITS[found.group(2)]) if found else 0


def mac_of(interface: str) -> str:
    """Return the MAC address of a netN value."""
    found = MAC.search(interface)
    return found.group(1).upper() if found else ""


def macs_of(config: dict[str, Any]) -> list[str]:
    """Return the MAC addresses of the VM's NICs, the first NIC's first."""
    nics = sorted((int(key[3:]), str(value)) for key, value in config.items() if NIC_KEY.match(key))
    return [mac for _number, value in nics if (mac := mac_of(value))]


def container_addresses(interfaces: list[dict[str, Any]], macs: list[str]) -> list[str]:
    """What Proxmox sees of a container's addresses, as `usable_addresses` returns them."""
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
    """Addresses that somebody else can reach, IPv4 first, in the order of the VM's NICs.

    A guest has more, of bridges and tunnels of its own: nobody outside can reach those, and no NIC of the VM has
    their MAC address. Only a VM without a NIC that Proxmox knows (a device passed through) tells all that it has.
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
