# SPDX-License-Identifier: Apache-2.0
"""Looks up a guest, and waits until the guest has the state that a change requested.

The modules of community.proxmox return before the outcome of a change is known, or do not notice that a Proxmox task
failed. So each change is followed by a look-up, which waits until the Proxmox task has ended and reads its error. The
facts of a guest are the data that a look-up returns (`LookUp.run` lists them).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from .client import REQUEST_ERRORS, is_request_refused
from .cluster import NODE_DOWN_HTTP_STATUSES, Cluster
from .guest_facts import CREATION_LOCKS, facts_of_absent_guest, macs_of
from .identity import HA_ERROR
from .proxmox_tasks import has_failed, is_running, is_task_outcome_unknown, newest_first
from .templates import find_template

#: The states that a look-up can wait for. In this list, "the tasks" are the Proxmox tasks of the change whose outcome
#: the look-up reads.
#: `nothing`: the look-up does not wait.
#: `unlocked`: the guest exists and has none of the locks `clone`, `create` and `destroyed`. The wait also ends if no
#: guest exists.
#: `cloned`: the guest exists and has neither the lock `clone` nor the lock `create`.
#: `created` (after a creation without a template), `quiet` (after a change of the configuration): as `cloned`, and the
#: tasks have ended, successfully or not.
#: `idle` (after a snapshot, a rollback or a backup): at least one task exists, and all tasks have succeeded.
#: `absent`: the guest does not exist.
#: `running`, `stopped`: the guest has this status, and the tasks have ended.
#: `migrated`: the guest is on the target node, and the tasks have ended.
#: `restarted`: a task that restarts the guest has succeeded, and the guest is running.
WAIT_STATES = (
    *("nothing", "unlocked", "created", "cloned", "running", "stopped", "absent", "idle", "quiet", "migrated"),
    "restarted",
)
#: The maximum time that the guest needs to reach its new state after its Proxmox task has ended successfully.
MAX_SETTLE_S = 5.0
#: The maximum time that a VM needs to run again after a reboot. The Proxmox task of the reboot ends when the VM is off.
#: A second Proxmox task then starts the VM, but Proxmox does not list it for our API token, so the look-up waits for
#: the status of the VM.
MAX_REBOOT_SETTLE_S = 60.0
#: Maximum time without an answer from Proxmox during a wait. After this time, the look-up fails.
MAX_OUTAGE_S = 30.0
#: Maximum time from the beginning of a look-up until Proxmox's answers contain a new clone. After this time, the wait
#: ends even if a clone task of the template still runs: this task may belong to another job.
MAX_CLONE_INVISIBLE_S = 20.0
#: The lock that Proxmox sets at the end of a deletion, after it has removed the disks.
DESTROYED_LOCK = "destroyed"
#: The maximum time for which a guest has the lock DESTROYED_LOCK during a deletion. During this time, Proxmox waits for
#: the lock of its file `user.cfg`, and removes the guest's permissions from this file.
MAX_DESTROYED_S = 12.0
#: Types of Proxmox tasks that restart a guest. A container is restarted by a stop and a start (`vzstart`).
RESTART_TASK_TYPES = ("qmreboot", "qmreset", "vzstart")
#: The time between two polls during a wait grows from FIRST_POLL_S to MAX_POLL_S.
FIRST_POLL_S = 0.2
MAX_POLL_S = 2.0
#: Maximum number of clone tasks of one template whose logs are read.
MAX_LOGS_TO_READ = 16


@dataclass(frozen=True, kw_only=True)
class Query:
    """The parameters of a look-up: the data to read, and the state to wait for."""

    vmid: int
    deadline_monotonic_s: float  #: the end of every wait, by the clock of `time.monotonic`
    node: str = ""  #: where the guest is expected; if empty, Proxmox's list of guests shows the node
    template_vmid: int = 0  #: the VMID of the template; 0: `template` has its name, or there is no template
    template: str = ""  #: the name of the template, used if `template_vmid` is 0
    template_node: str = ""  #: the node where an earlier look-up found the template
    #: If the guest is not found, verify that it does not exist. The fact `absence` has the result.
    prove_absence: bool = False
    with_snapshots: bool = False  #: whether the guest's snapshots are read, too
    backup_storage: str = ""  #: the storage whose archives of the guest are listed
    target_node: str = ""  #: the fact `target` states whether this node exists and is online; '' omits the fact
    wait_for: str = "nothing"  #: one of WAIT_STATES
    #: UPIDs of older Proxmox tasks, which do not belong to the change. None: only the tasks in `upids` belong to it.
    known_tasks: Collection[str] | None = None
    task_types: Collection[str] | None = None  #: types of the Proxmox tasks of the change; None: any type
    upids: Collection[str] = ()  #: the UPIDs that Proxmox's answers to the change contain; empty if they contain none
    address_timeout_s: float = -1  #: how long to wait for the guest's IP addresses; negative: do not read them


class LookUp:
    """One look-up of a guest."""

    def __init__(self, cluster: Cluster, query: Query, on_poll: Callable[[dict[str, Any], list[str]], None]) -> None:
        """`on_poll` gets the facts and the UPIDs of the running Proxmox tasks of the change.

        During a wait, it is called after each poll that Proxmox has answered, except the final poll. If some of the
        Proxmox tasks may belong to other jobs, `on_poll` gets [] instead of the UPIDs.
        """
        self.cluster = cluster
        self.query = query
        self.on_poll = on_poll
        self.started_monotonic_s = time.monotonic()
        #: The time of Proxmox's last answer. In a wait for `unlocked`, the first value is `-inf`: if the first poll
        #: gets no answer, the look-up fails, and the agent can retry the job, because nothing has been changed yet.
        self.last_answer_monotonic_s = float("-inf") if query.wait_for == "unlocked" else self.started_monotonic_s
        #: The time at which a Proxmox task of the change was last seen running.
        self.last_busy_monotonic_s = self.started_monotonic_s
        self.template: dict[str, Any] = {}  #: the facts of the template; empty if the query names none
        self.vmids_in_logs: dict[str, set[int]] = {}  #: the VMIDs in the logs of clone tasks, by UPID
        #: The UPIDs of all Proxmox tasks that Proxmox has listed, of this and of other changes.
        self.seen_upids: set[str] = set()
        self.running_upids: set[str] = set()  #: UPIDs of the Proxmox tasks of the change that have not ended yet
        #: The list of guests that was read to find the template. None after the first read of the guest.
        self.guest_rows: list[dict[str, Any]] | None = None

    def run(self) -> dict[str, Any]:
        """Look up the guest, wait for the requested state, and return the guest's facts.

        The facts describe the guest's configuration and status, for example `exists`, `node`, `lock` and `config`
        (guest_facts.py lists all of them). If the guest was not found and the query has `prove_absence`, the fact
        `absence` has `is_proven`: whether it is certain that the guest does not exist. If `is_proven` is false, the
        fact `absence` contains the error `code` and `text`.

        There are also the facts `template` (the facts of the template), `reached` (whether the guest has the requested
        state), `task_error` (the error of a failed Proxmox task of the change), `upids` (the UPIDs of the
        Proxmox tasks of the change: the query's `upids`, or those that the look-up has found), `running_tasks` (the
        UPIDs in the fact `upids` whose tasks have not ended), `known_tasks` (the value for the next look-up's query)
        and `looked_at` (the time of the look-up in seconds since 1970). If the query requests them, there are also the
        facts `snapshots`, `backups` and `target`. Raises one of REQUEST_ERRORS.
        """
        self.template = self._find_template()
        facts, tasks, is_reached = self._wait() if self.query.wait_for != "nothing" else (self._read_guest(), [], True)
        self._add_requested_facts(facts)
        return {
            **facts,
            "template": self.template,
            "reached": is_reached,
            "task_error": self._task_error(tasks),
            "upids": [task["upid"] for task in reversed(tasks)],
            "running_tasks": [task["upid"] for task in reversed(tasks) if is_running(task)],
            "known_tasks": self._known_tasks(facts),
            "looked_at": int(time.time()),
        }

    def _add_requested_facts(self, facts: dict[str, Any]) -> None:
        """Add the facts that only some look-ups need."""
        query, cluster = self.query, self.cluster
        if not facts["exists"] and query.prove_absence:
            facts["absence"] = cluster.check_absence(query.vmid, query.node)
        # If the guest is not of the requested kind (VM or container), the endpoints that are used below do not exist.
        is_requested_kind = facts["exists"] and facts["kind"] == cluster.kind
        if is_requested_kind and query.with_snapshots:
            facts["snapshots"] = cluster.snapshots(facts["node"], query.vmid)
        if is_requested_kind and query.backup_storage:
            facts["backups"] = cluster.backups(facts["node"], query.backup_storage, query.vmid)
        if query.target_node:
            is_online_by_node, _is_quorate = cluster.node_states_and_quorum()
            is_online = is_online_by_node.get(query.target_node, False)
            facts["target"] = {"exists": query.target_node in is_online_by_node, "is_online": is_online}
        if facts.get("status") == "running" and query.address_timeout_s >= 0:
            facts["ip_addresses"] = self._addresses(facts["node"], macs_of(facts["config"]))

    def _find_template(self) -> dict[str, Any]:
        """Return the facts of the template and `problem`, the reason why it cannot be cloned; '' if it can.

        Return {} if the query names no template.
        """
        query = self.query
        if query.template_node:
            return {"exists": True, "node": query.template_node, "vmid": query.template_vmid, "problem": ""}
        if not (query.template_vmid or query.template):
            return {}
        self.guest_rows = self.cluster.list_guests()
        return find_template(self.cluster, self.guest_rows, query.template_vmid, query.template, query.node)

    def _read_guest(self) -> dict[str, Any]:
        # The list of guests in `guest_rows` is used only at the first poll. Each later poll reads a new list.
        rows, self.guest_rows = self.guest_rows, None
        return self.cluster.find_guest(self.query.vmid, self.query.node, rows)

    def _known_tasks(self, facts: dict[str, Any]) -> list[str]:
        """Return the UPIDs of the Proxmox tasks that exist now.

        The next look-up gets these UPIDs as `known_tasks`. A Proxmox task that is not among them is then new.
        """
        # This look-up has listed the Proxmox tasks of the template. The next one lists those of the clone.
        if self.query.wait_for == "cloned":
            return [task["upid"] for task in self.cluster.tasks(facts["node"], self.query.vmid)]
        if self.query.known_tasks is None:
            return [task["upid"] for task in self._list_tasks(facts)]
        return sorted({*self.query.known_tasks, *self.seen_upids, *self.query.upids})

    def _candidate_tasks(self, facts: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the Proxmox tasks that may belong to the change; `_tasks_of_change` selects from them.

        If Proxmox's answers to the change contained UPIDs, the Proxmox tasks with these UPIDs are returned. If not, the
        new Proxmox tasks are returned whose type is in the query's `task_types`. New Proxmox tasks of other types do
        not belong to the change: another program with the same Proxmox user or API token has started them.
        """
        if self.query.upids:
            return newest_first([self.cluster.task(upid) for upid in self.query.upids])
        known_upids, task_types = self.query.known_tasks, self.query.task_types
        if known_upids is None:
            return []
        listed_tasks = self._list_tasks(facts)
        self.seen_upids.update(task["upid"] for task in listed_tasks)
        new_tasks = [task for task in listed_tasks if task["upid"] not in known_upids]
        new_tasks = new_tasks if task_types is None else [task for task in new_tasks if task["type"] in task_types]
        # If a Proxmox task ran at the previous poll and Proxmox no longer lists it, it is read by its UPID.
        vanished_upids = self.running_upids - {task["upid"] for task in listed_tasks}
        new_tasks = newest_first([*new_tasks, *(self.cluster.task(upid) for upid in vanished_upids)])
        self.running_upids = {task["upid"] for task in new_tasks if is_running(task)}
        return new_tasks

    def _list_tasks(self, facts: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the guest's Proxmox tasks. Proxmox lists a clone task as a task of the template, not of the clone.

        Proxmox lists a task only on the node where it was started. If the VM has moved, this may be the VM's old node
        or its new one.
        """
        if self.template.get("exists") and (self.query.wait_for == "cloned" or not facts["exists"]):
            return self.cluster.tasks(self.template["node"], self.template["vmid"])
        if self.query.wait_for == "migrated" or facts["node"] in ("", self.query.node):
            return self.cluster.tasks(self.query.node, self.query.vmid)
        tasks_on_new_node = self.cluster.tasks(facts["node"], self.query.vmid)
        return newest_first([*tasks_on_new_node, *self._tasks_on_old_node()])

    def _tasks_on_old_node(self) -> list[dict[str, Any]]:
        """Return the Proxmox tasks on the node where the VM was expected; none if that node does not answer."""
        try:
            return self.cluster.tasks(self.query.node, self.query.vmid)
        except REQUEST_ERRORS as exc:
            if getattr(exc, "status_code", 0) in NODE_DOWN_HTTP_STATUSES:
                return []
            raise

    # ------------------------------------------------------------------ waiting

    def _wait(self) -> tuple[dict[str, Any], list[dict[str, Any]], bool]:
        """Poll until the guest has the requested state, cannot reach it, or the deadline has passed.

        Return the guest's facts, the Proxmox tasks of the change, and whether the requested state is reached.
        """
        poll_interval_s = FIRST_POLL_S
        facts, tasks = facts_of_absent_guest(self.query.vmid), []
        while True:
            is_past_deadline = time.monotonic() >= self.query.deadline_monotonic_s
            try:
                # The final poll, after the deadline, always reads everything, because the result needs the outcomes of
                # the Proxmox tasks.
                if is_past_deadline or not self._is_clone_still_locked(facts):
                    # Read the Proxmox tasks first: if the task of a creation has ended, the guest exists, so the
                    # request for the guest finds it.
                    tasks = self._candidate_tasks(facts)
                    facts = self._read_guest()
            except REQUEST_ERRORS as exc:
                # If Proxmox does not answer, the next poll repeats the requests. The look-up fails only after the
                # deadline, after a refusal, or after MAX_OUTAGE_S without an answer.
                if (
                    is_past_deadline
                    or is_request_refused(exc)
                    or time.monotonic() - self.last_answer_monotonic_s > MAX_OUTAGE_S
                ):
                    raise
            else:
                self.last_answer_monotonic_s = time.monotonic()
                running_upids = [task["upid"] for task in tasks if is_running(task)]
                if running_upids:
                    self.last_busy_monotonic_s = self.last_answer_monotonic_s
                is_reached = self._is_state_reached(facts, tasks)
                if is_reached or is_past_deadline or self._is_wait_useless(facts, tasks):
                    return facts, self._tasks_of_change(tasks, facts), is_reached
                self.on_poll(facts, [] if self._may_include_tasks_of_other_jobs(tasks, facts) else running_upids)
            time.sleep(poll_interval_s)
            poll_interval_s = min(poll_interval_s * 1.5, MAX_POLL_S)

    def _is_clone_still_locked(self, facts: dict[str, Any]) -> bool:
        """Return True if the clone was locked at the previous poll and still is.

        Only the lock is read, because no other fact changes while the clone is locked.
        """
        was_clone_locked = self.query.wait_for == "cloned" and facts["exists"] and facts["lock"] in CREATION_LOCKS
        return was_clone_locked and self.cluster.is_being_created(facts["node"], self.query.vmid)

    def _is_state_reached(self, facts: dict[str, Any], tasks: list[dict[str, Any]]) -> bool:
        """Return True if the guest has the requested state.

        For most states, the Proxmox tasks of the change must have ended, too.
        """
        have_tasks_ended = not any(is_running(task) for task in tasks)
        is_created = bool(facts["exists"] and facts["lock"] not in CREATION_LOCKS)
        is_restarted = any(task["type"] in RESTART_TASK_TYPES and not has_failed(task) for task in tasks)
        is_migrated = facts["node"] == self.query.target_node and facts["lock"] != "migrate"
        conditions = {
            "unlocked": is_created and facts["lock"] != DESTROYED_LOCK,
            "cloned": is_created,
            "created": is_created and have_tasks_ended,
            "quiet": is_created and have_tasks_ended,  # the tasks may have failed
            "absent": not facts["exists"],
            # at least one task, and all tasks have succeeded
            "idle": bool(tasks) and have_tasks_ended and not any(has_failed(task) for task in tasks),
            "migrated": is_migrated and have_tasks_ended,
            "restarted": is_restarted and have_tasks_ended and facts["status"] == "running",
        }
        # The other values of `wait_for`, `running` and `stopped`, are statuses of a guest.
        return conditions.get(self.query.wait_for, facts["status"] == self.query.wait_for and have_tasks_ended)

    def _is_wait_useless(self, facts: dict[str, Any], tasks: list[dict[str, Any]]) -> bool:
        """Return True if the wait must end before the deadline, for example because the change has failed."""
        if self.query.wait_for == "unlocked":
            is_deletion_interrupted = (
                facts["lock"] == DESTROYED_LOCK and time.monotonic() - self.started_monotonic_s > MAX_DESTROYED_S
            )
            return not facts["exists"] or is_deletion_interrupted
        is_busy = any(is_running(task) for task in tasks)
        if self.query.wait_for == "cloned":
            if not facts["exists"] and any(has_failed(task) for task in tasks):
                tasks_of_change = self._tasks_of_change(tasks, facts)
                if tasks_of_change and has_failed(tasks_of_change[0]):
                    return True
            settle_s = MAX_SETTLE_S if any(not has_failed(task) for task in tasks) else 0
            is_settle_time_over = not is_busy and time.monotonic() - self.last_busy_monotonic_s > settle_s
            return not facts["exists"] and (
                is_settle_time_over or time.monotonic() - self.started_monotonic_s > MAX_CLONE_INVISIBLE_S
            )
        if facts.get("ha_state") == HA_ERROR:
            return not is_busy
        if is_busy or any(task["type"].startswith("ha") and not has_failed(task) for task in tasks):
            return False  # the HA manager changes the guest after the task `hastart`, `hastop` or `hamigrate`
        settle_s = MAX_REBOOT_SETTLE_S if self.query.wait_for == "restarted" and tasks else MAX_SETTLE_S
        # The outcome of an ended Proxmox task is unknown if the task's process was killed or its log was removed.
        has_last_task_failed = bool(tasks) and has_failed(tasks[0]) and not is_task_outcome_unknown(tasks[0])
        return time.monotonic() - self.last_busy_monotonic_s > settle_s or has_last_task_failed

    def _may_include_tasks_of_other_jobs(self, tasks: list[dict[str, Any]], facts: dict[str, Any]) -> bool:
        """Return True if some of these Proxmox tasks may belong to other jobs.

        Proxmox lists clone tasks as tasks of the template, and other jobs may clone the same template at the same time.
        If the clone of this job exists and only one clone task is new, that clone task has made the clone.
        """
        return self.query.wait_for == "cloned" and (len(tasks) > 1 or not facts["exists"])

    def _tasks_of_change(self, tasks: list[dict[str, Any]], facts: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the Proxmox tasks of this change. A clone task belongs to it if its log names the VMID of the clone.

        A single clone task is also returned if its log names no VMID except the template's, because Proxmox 8 does not
        always log the VMID of the clone.
        """
        if not self._may_include_tasks_of_other_jobs(tasks, facts):
            return tasks
        self._read_clone_logs(tasks)
        tasks_with_vmid = [task for task in tasks if self.query.vmid in self.vmids_in_logs.get(task["upid"], ())]
        return tasks if len(tasks) == 1 and not self.vmids_in_logs[tasks[0]["upid"]] else tasks_with_vmid

    def _read_clone_logs(self, tasks: list[dict[str, Any]]) -> None:
        """Read the logs of these clone tasks, and store the VMIDs that they name in `vmids_in_logs`.

        At most MAX_LOGS_TO_READ logs are read, first the logs of failed Proxmox tasks. A log in which a VMID was found
        is not read again.
        """
        unread_tasks = [task for task in tasks if not self.vmids_in_logs.get(task["upid"])]
        unread_tasks.sort(key=lambda task: not has_failed(task))
        for task in unread_tasks[:MAX_LOGS_TO_READ]:
            self.vmids_in_logs[task["upid"]] = self.cluster.vmids_in_log(task) - {self.query.template_vmid}

    def _task_error(self, tasks: list[dict[str, Any]]) -> str:
        return next((self.cluster.error_of(task) for task in tasks if has_failed(task)), "")

    def _addresses(self, node: str, macs: list[str]) -> list[str]:
        """Return the guest's IP addresses; [] if it reports none in time.

        `cluster.addresses` returns None if waiting is useless, for example because the guest has no guest agent.
        """
        deadline_monotonic_s = min(time.monotonic() + self.query.address_timeout_s, self.query.deadline_monotonic_s)
        while True:
            addresses = self.cluster.addresses(node, self.query.vmid, macs)
            if addresses is None or addresses or time.monotonic() >= deadline_monotonic_s:
                return addresses or []
            time.sleep(1)
