# SPDX-License-Identifier: Apache-2.0
"""Defines the base class of the action plugins for the guest of a service.

An action plugin looks the guest up, makes the change that the request `vm` requests, verifies the outcome, and returns
the result document: the dictionary `vm_result`. If the request is impossible, or if the guest is not as requested after
the change, the plugin raises Refused, and its Ansible task fails.

An action plugin runs in a process that ansible-playbook forks. It looks the guest up in this process, so all its
look-ups share one HTTP connection. To make the change, the plugin calls Ansible's function that executes a module,
with a module of community.proxmox. If no module can make the change, the plugin sends an HTTP request itself.
The answer to a change is not trusted: the plugin looks the guest up again.
"""

from __future__ import annotations

import os
import time
from typing import Any, ClassVar

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase

from . import failures, login
from .bounded_module import bounded_module
from .client import REQUEST_ERRORS, LibraryMissing, error_text
from .cluster import LOG_END_LINES, Cluster, open_cluster
from .identity import identity_problem, kind_of
from .look_up import LookUp, Query
from .progress import Progress
from .proxmox_tasks import task_types, upid_in
from .request_values import argument_spec, given_members
from .result import result_document
from .shared.progress_texts import VERIFYING_PREFIX
from .shared.run_until import run_deadline_from_environment

#: The maximum duration of a plugin's execution if the request contains no `timeout_s`.
DEFAULT_TIMEOUT_S = 240
#: The minimum timeout of a module, even if the deadline has passed.
MIN_MODULE_TIMEOUT_S = 1

#: The facts of a guest (such as `node` and `status`) or of a template.
Facts = dict[str, Any]


class Refused(Exception):
    """Ends the Ansible task of the plugin as failed, before or after a change. The text is `CODE: reason`."""


class VmAction(ActionBase):
    """The base class of the action plugins. A subclass implements `execute`."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False

    #: The arguments of the action plugin, without `vm`, `connection` and `ca_bundle`, in the format of Ansible's
    #: argument specs.
    ARGUMENTS: ClassVar[dict[str, Any]] = {}
    #: The members of `vm` that this plugin needs in addition to the members that identify the guest.
    REQUIRED_MEMBERS: ClassVar[tuple[str, ...]] = ()

    vm: dict[str, Any]  #: the argument `vm`: the guest, and the requested change of it
    arguments: dict[str, Any]  #: the values of ARGUMENTS
    connection: dict[str, Any]  #: the login, as parameters of community.proxmox's modules
    timeout_s: float  #: the maximum duration of the plugin's execution
    addresses: list[str]  #: the guest's IP addresses at the first look-up
    progress: Progress  #: writes lines about the plugin's progress into Ansible's output
    cluster: Cluster  #: sends the read requests to the cluster
    modules: list[str]  #: the full names of the modules that the plugin has executed
    requests: list[str]  #: the POST, PUT and DELETE requests that the plugin sent itself, without a module
    upids: list[str]  #: the UPIDs of the Proxmox tasks that the plugin has started
    answers: list[dict[str, Any]]  #: the answers to the changes since the last look-up
    notices: dict[str, list[Any]]  #: `warnings` and `deprecations` of the modules and of the plugin
    extra_return_values: dict[str, Any]  #: further values that the plugin returns beside `vm_result`
    #: The result document that the plugin returns if it fails; {} until `store_vm_result_for_failure` is called.
    vm_result_for_failure: dict[str, Any]

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Execute the plugin. Return `changed`, `diff`, and the result document as `vm_result` and as a custom stat.

        If the plugin fails, return `failed` and `msg` (`CODE: reason`), and `vm_result` if the guest was found.
        """
        super().run(tmp, task_vars)
        self._task_vars = task_vars
        self._playbook_pid = os.getppid()
        # The plugin makes no change after this deadline. The agent extends the deadline when it renews its leases.
        # None if an operator executes ansible-playbook.
        self._run_deadline = run_deadline_from_environment(os.environ)
        self.vm_result_for_failure = {}
        self.diff: dict[str, Any] = {}
        self.extra_return_values = {}
        self.modules = []
        self.requests = []
        self.upids = []
        self.answers = []
        self.notices = {"warnings": [], "deprecations": []}
        try:
            self._prepare()
            document = self.execute()
        except Exception as exc:
            vm_result = {}
            if self.vm_result_for_failure:
                vm_result = {"vm_result": {**self.vm_result_for_failure, "upids": self.upids}}
            return {
                "failed": True,
                "changed": False,
                "msg": _error_message(exc),
                **self._changes_and_notices(),
                **vm_result,
            }
        stats = {"data": {"vm_result": document}, "per_host": False, "aggregate": False}
        diff = {"diff": self.diff} if self.diff else {}
        members = {"vm_result": document, "ansible_stats": stats, **self._changes_and_notices(), **diff}
        return {"changed": document["changed"], **members, **self.extra_return_values}

    def _changes_and_notices(self) -> dict[str, Any]:
        """Return the executed modules, the sent requests, the warnings and the deprecations."""
        notices = {kind: texts for kind, texts in self.notices.items() if texts}
        return {"modules": self.modules, "requests": self.requests, **notices}

    def execute(self) -> dict[str, Any]:
        """Make the requested change and return the result document.

        Raises Refused, or one of REQUEST_ERRORS, the exceptions of a failed request to Proxmox.
        """
        raise NotImplementedError

    # ------------------------------------------------------------------ methods for subclasses

    @property
    def is_check_mode(self) -> bool:
        return bool(self._task.check_mode)

    def look_up(self, **query: Any) -> Facts:
        """Look up the guest. The arguments are members of `Query`: what to read, and which state to wait for."""
        defaults = {
            "vmid": int(self.vm["vmid"]),
            "node": str(self.vm.get("node") or ""),  # "": Proxmox's list of guests shows the node
            "deadline_monotonic_s": self.deadline_monotonic_s,
        }
        return LookUp(self.cluster, Query(**{**defaults, **query}), self._report_wait).run()

    def look_up_after_change(self, facts: Facts, wait_for: str, change_result: str = "", **query: Any) -> Facts:
        """Look up the guest after a change, and wait for the state `wait_for`. `facts` are the facts before the change.

        The look-up finds the Proxmox tasks of the change by the UPIDs in `self.answers`. If an answer has no UPID, the
        look-up finds them by the types that `proxmox_tasks.TASK_TYPES` contains for the key `change_result`, for
        example the type `vzdump` for "backed_up". If `change_result` is "", the key is `wait_for`. By type, the look-up
        finds only Proxmox tasks that are not in `facts["known_tasks"]`, the UPIDs of older Proxmox tasks.
        """
        upids = [upid_in(answer) for answer in self.answers]
        defaults = {
            "upids": upids if all(upids) else (),
            "node": facts["node"],
            "known_tasks": facts["known_tasks"],
            "task_types": task_types(change_result or wait_for, kind_of(self.vm)),
            "wait_for": wait_for,
        }
        after = self.look_up(**(defaults | query))
        self.answers = []
        self._add_upids(after["upids"])
        if after["task_error"]:  # a Proxmox task of the change has failed: show the ends of the logs
            for upid in after["upids"]:
                self.progress.write_line(f"Proxmox task {upid} has ended{self._log_end_text(upid)}")
        self.progress.write_line(" ".join([VERIFYING_PREFIX, *(after["upids"] or ["the change"])]))
        return after

    def identify(self, *, may_be_absent: bool = False, **query: Any) -> Facts:
        """Look up the guest and verify that it belongs to the service. Raises Refused.

        `may_be_absent` is for a deletion: a guest that does not exist is accepted, and so is a partial clone.
        """
        self.progress.write_line("looking up the guest")
        # `prove_absence`: if the guest is not found, check whether it may exist, for example on an offline node.
        # `unlocked`: wait while the guest is being cloned, created or destroyed. Timeout 0: read the addresses once.
        facts = self.look_up(prove_absence=True, wait_for="unlocked", address_timeout_s=0, **query)
        self.refuse_if(identity_problem(facts, self.vm, may_be_absent))
        self.store_vm_result_for_failure(facts)
        self.addresses = facts["ip_addresses"]
        return facts

    def refuse_if(self, *problems: str) -> None:
        """Raise Refused with the first problem that is not empty."""
        for problem in problems:
            if problem:
                raise Refused(problem)

    #: The same method as `refuse_if`. This name is used for problems that are found after a change.
    fail_on_outcome_problem = refuse_if

    def change_with_module(self, module: str, **parameters: Any) -> dict[str, Any]:
        """Execute a module of community.proxmox with the parameters that are not None; return its answer.

        Raises Refused if the module failed and has certainly not made its change. If the module failed but may have
        made its change, its answer is returned, because the next look-up shows the outcome.
        """
        self.require_change_allowed()
        self.modules.append(f"community.proxmox.{module}")
        given_parameters = {name: value for name, value in parameters.items() if value is not None}
        with bounded_module():  # limits the module's memory, and the size and duration of its HTTP answers
            module_answer = self._execute_module(
                module_name=self.modules[-1],
                module_args={**self.connection, **given_parameters},
                task_vars=self._task_vars,
            )
        # If the module ended with an exception, its answer gets the text of the exception as `msg`.
        answer = failures.with_exception_as_message(module_answer)
        for kind, texts in self.notices.items():
            texts.extend(answer.get(kind) or [])
        self.store_answer(answer)
        if answer.get("failed") and not failures.is_outcome_unknown(answer):
            raise Refused(failures.proxmox_failure(answer))
        return answer

    def store_answer(self, answer: dict[str, Any]) -> None:
        """Store the answer to a change for the next look-up, and the UPID in this answer for the result document."""
        self.answers.append(answer)
        self._add_upids([upid_in(answer)])

    def _add_upids(self, upids: list[str]) -> None:
        self.upids += [upid for upid in upids if upid and upid not in self.upids]

    def warn(self, text: str) -> None:
        """Add a warning to the values that the plugin returns. Ansible shows the warning."""
        self.notices["warnings"].append(text)

    def require_change_allowed(self) -> None:
        """Raise Refused if ansible-playbook was killed, if `_run_deadline` has passed, or if no time is left.

        If ansible-playbook is killed, the process of this plugin continues, because Ansible starts it in a separate
        session. After `_run_deadline`, another agent may process the job, and this agent may be unable to end the
        plugin. The deadline of the plugin (`deadline_monotonic_s`) is checked only before its first change, because the
        later changes complete the first change.
        """
        if os.getppid() != self._playbook_pid:
            raise Refused("CANCELLED: ansible-playbook has ended")
        if self._run_deadline is not None and self._run_deadline.has_passed():
            raise Refused("LEASE_LOST: the agent has not renewed its leases in time, so nothing more is changed")
        if not self.modules and not self.requests:
            self.require_time(0, "a change")

    def require_time(self, needed_s: float, purpose: str) -> None:
        """Raise Refused if less time than `needed_s` is left until the deadline of the plugin."""
        if time.monotonic() + needed_s > self.deadline_monotonic_s:
            needs = f", which needs {needed_s:.0f} s" if needed_s else ""
            raise Refused(f"TASK_TIMEOUT: too little time is left for {purpose}{needs}")

    def store_vm_result_for_failure(self, facts: Facts, **members: Any) -> None:
        """Store a result document, which the plugin returns if it fails after this call."""
        self.vm_result_for_failure = result_document(facts, self.vm, **members)

    def build_result_document(self, facts: Facts, **members: Any) -> dict[str, Any]:
        """Return the result document. It has the addresses of the first look-up if the guest now reports none."""
        return result_document(facts, self.vm, self.addresses, **members)

    def time_left_s(self, at_most_s: float) -> int:
        """Return the time until the deadline in whole seconds, at least 1 and at most `at_most_s`."""
        return max(MIN_MODULE_TIMEOUT_S, int(min(at_most_s, self.deadline_monotonic_s - time.monotonic())))

    # ------------------------------------------------------------------ preparation

    def _prepare(self) -> None:
        arguments = self._validated_arguments()
        self.arguments = {name: arguments[name] for name in self.ARGUMENTS}
        # Ansible's validation has added the members that the request lacks. They are removed.
        self.vm = given_members(arguments["vm"], self._task.args["vm"])
        self.addresses = []
        self.deadline_monotonic_s = time.monotonic() + float(self.vm.get("timeout_s") or DEFAULT_TIMEOUT_S)
        # The agent sets this member, so that the plugin ends before the agent ends the playbook.
        if self.vm.get("deadline_monotonic_s"):
            self.deadline_monotonic_s = min(self.deadline_monotonic_s, float(self.vm["deadline_monotonic_s"]))
        self.timeout_s = self.deadline_monotonic_s - time.monotonic()
        # The login is the argument `connection`, or else a variable of the play. If both are empty, `open_cluster`
        # reads the login from the credentials file or the environment.
        login_of_play = login.login_from_variables(self._task_vars, self._templar.template)
        connection = arguments["connection"] or login_of_play
        ca_bundle = arguments["ca_bundle"] or login_of_play.get("ca_bundle", "")
        self.cluster, used_login = open_cluster(connection, ca_bundle, kind_of(self.vm))
        self.cluster.session.deadline_monotonic_s = self.deadline_monotonic_s
        self.connection = used_login.connection
        # The modules read the path of the CA bundle, and a fixed timeout for HTTP requests, from environment variables.
        self._task.environment = [*(self._task.environment or []), login.module_environment(used_login.ca_bundle)]
        self.progress = Progress(self._display.display, int(self.vm["vmid"]), str(self.vm["name"]))

    def _validated_arguments(self) -> dict[str, Any]:
        try:
            _result, arguments = self.validate_argument_spec(argument_spec(self.REQUIRED_MEMBERS, self.ARGUMENTS))
        except AnsibleActionFail as exc:
            raise Refused(f"INVALID_REQUEST: {exc}") from exc
        return dict(arguments)

    def _report_wait(self, facts: Facts, running_upids: list[str]) -> None:
        """Write a progress line about the current wait, unless a line was written in the last seconds."""
        if not self.progress.is_wait_line_due():
            return
        if running_upids:
            upid = running_upids[0]
            percent = self.cluster.percent_of(upid)
            percent_text = f", {percent} %" if percent else ""
            self.progress.write_line(f"waiting for Proxmox task {upid}{percent_text}{self._log_end_text(upid, 1)}")
        elif facts.get("lock"):
            self.progress.write_line(f"waiting for the lock {facts['lock']}")
        else:
            self.progress.write_line(f"waiting: the guest is {facts['status']}")

    def _log_end_text(self, upid: str, max_lines: int = LOG_END_LINES) -> str:
        """Return ", log: " and the last lines of a Proxmox task's log; '' if the log was not read or is empty."""
        lines = self.cluster.log_end_by_upid.get(upid, [])[-max_lines:]
        return f", log: {' | '.join(lines)}" if lines else ""


def _error_message(exc: Exception) -> str:
    """Return the error of a failed action plugin as `CODE: text`."""
    if isinstance(exc, (Refused, LibraryMissing, login.LoginError)):
        # If the text begins with an error code, the code is kept. Otherwise the text determines the code.
        return failures.action_plugin_failure(error_text(exc))
    if isinstance(exc, RecursionError):
        return "PVE_API_ERROR: Proxmox's answer is nested too deep"
    if isinstance(exc, (AnsibleError, *REQUEST_ERRORS)):
        # The text is from Proxmox, so an error code in it is ignored.
        return failures.proxmox_failure({"msg": error_text(exc)})
    return f"INTERNAL: {failures.type_and_location_of(exc)}"
