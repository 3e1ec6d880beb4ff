"""`smith play --hosts`: runs one action on several VMs of the dynamic inventory inventory/smith.proxmox.yml.

The action's playbook runs once for each VM, and gets the VM as the extra variable `vm`, a dictionary. A member of `vm`
is a key with its value.
"""

from __future__ import annotations

import io
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any

import typer

from executor.cli import ansible_playbook, arguments, play_hosts, play_plan, play_result
from executor.cli.ansible_playbook import Output, PlaybookRequest, PlaybookStopper
from executor.cli.arguments import EXIT_INTERRUPTED, UnusableArgument
from executor.cli.output import show_error, show_json, show_text
from executor.cli.play_target import find_row_by_vmid, read_identity
from executor.cli.play_values import VmMemberSpecs
from executor.cli.play_vm import build_request, make_vm_variable
from executor.cli.service_lock import lock_service_of_vm
from executor.cli.store import open_database_if_exists
from executor.cli.tables import show_heading, show_rows
from executor.errors import EXIT_FAILURE, EXIT_SOME_FAILED, JobError, SmithError
from executor.model import JobResult
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.connection import ProxmoxConnection
from executor.runs.actions import Action
from executor.settings.settings import Settings
from executor.views.text import count_with_noun, sanitized

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
    from sqlalchemy import Engine

#: The columns of the table of VMs: maps each key of a row to the heading of its column.
COLUMNS = {
    "vmid": "VMID",
    "name": "NAME",
    "outcome": "OUTCOME",
    "changed": "CHANGED",
    "run_ident": "RUN",
    "detail": "DETAILS",
}
NOT_RUN_TEXT = "not run, because the command was interrupted"


@dataclass(frozen=True, kw_only=True)
class HostsOptions:
    """The options of `smith play --hosts`."""

    pattern: str  #: the Ansible pattern that selects the VMs
    max_parallel: int  #: the maximum number of VMs on which the action runs at the same time
    is_check_mode: bool
    must_show_plan: bool  #: whether the plan is shown, and the operator is asked for confirmation
    reason: str  #: the operator's reason for the action, for the audit entries of the runs


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How the action ended on one VM. If `result` is None, `problem` says why the playbook did not run."""

    vm: dict[str, Any]  #: the members of the extra variable `vm`; only `vmid` if the VM could not be read
    result: JobResult | None = None
    run_ident: str = ""
    problem: str = ""

    @property
    def succeeded(self) -> bool:
        """Whether the playbook ran and succeeded."""
        return self.result is not None and self.result.succeeded


class PrefixedOutput(io.TextIOBase):
    """Writes whole lines to a stream that several threads share. Each line begins with `prefix`, the name of a VM."""

    def __init__(self, stream: IO[str], prefix: str, lock: threading.Lock) -> None:
        self._stream, self._prefix, self._lock = stream, prefix, lock
        self._unfinished_line = ""

    def write(self, text: str) -> int:
        """Write the complete lines of the text. An incomplete last line is kept until its rest is written."""
        *lines, self._unfinished_line = (self._unfinished_line + text).split("\n")
        with self._lock:
            for line in lines:
                print(f"{self._prefix} | {line}", file=self._stream, flush=True)
        return len(text)


def play(  # noqa: PLR0913 (the requests and the runs need these values)
    action: Action,
    vm_members_from_operator: dict[str, Any],
    vm_member_specs: VmMemberSpecs,
    settings: Settings,
    hosts_options: HostsOptions,
    *,
    as_json: bool,
) -> None:
    """Run the action on each VM that the pattern selects, and print a summary.

    `vm_members_from_operator` are the members of `vm` from --vars and -e. `vm_member_specs` has the argument spec of
    each member.

    Raises typer.Exit with EXIT_SOME_FAILED if the action failed on some of the VMs, and with EXIT_FAILURE if the action
    failed on all VMs.
    """
    if action.name == "create":
        raise typer.BadParameter("create makes one new VM, so it cannot be combined with --hosts")
    with open_database_if_exists(settings) as engine:  # `engine` is None if there is no database
        requests, outcomes = _build_requests(action, vm_members_from_operator, vm_member_specs, settings, hosts_options)
        if not as_json:
            vms = count_with_noun(len(requests), "VM")
            show_heading(f"{action.name} on {vms}, {hosts_options.max_parallel} at the same time")
            show_rows([request.vm for request in requests], {"vmid": "VMID", "name": "NAME"}, if_empty="no VM")
        if hosts_options.must_show_plan and requests:
            _show_plans_and_confirm(action, requests, settings, hosts_options)
        stopper = PlaybookStopper()
        outcomes += _run_requests(
            requests, settings, engine, hosts_options, stopper, sys.stderr if as_json else sys.stdout
        )
    _show_outcomes(outcomes, is_check_mode=hosts_options.is_check_mode, as_json=as_json)
    if stopper.is_stopped:
        raise typer.Exit(EXIT_INTERRUPTED)
    if not all(outcome.succeeded for outcome in outcomes):
        raise typer.Exit(EXIT_SOME_FAILED if any(outcome.succeeded for outcome in outcomes) else EXIT_FAILURE)


def _show_plans_and_confirm(
    action: Action, requests: list[PlaybookRequest], settings: Settings, hosts_options: HostsOptions
) -> None:
    """Show for each VM what would be changed, and ask. Raises typer.Exit if the operator does not agree."""
    show_text("\nchecking what would be changed …")
    check_mode_requests = [replace(request, is_check_mode=True) for request in requests]
    stopper = PlaybookStopper()
    # In check mode no run is stored, so the engine is None. What the playbooks print is not shown.
    _show_outcomes(
        _run_requests(check_mode_requests, settings, None, hosts_options, stopper, io.StringIO()),
        is_check_mode=True,
        as_json=False,
    )
    if stopper.is_stopped:
        raise typer.Exit(EXIT_INTERRUPTED)
    # An action that is not ours is an action that the provider has added. It may contain Ansible tasks that check mode
    # skips, so the plan may be incomplete.
    if not action.is_ours:
        show_text(play_plan.INCOMPLETE_PLAN_NOTE)
    # `yes=False`: ask the operator.
    arguments.confirm(f"Run {action.name} on {count_with_noun(len(requests), 'VM')}?", yes=False)


def _build_requests(
    action: Action,
    vm_members_from_operator: dict[str, Any],
    vm_member_specs: VmMemberSpecs,
    settings: Settings,
    hosts_options: HostsOptions,
) -> tuple[list[PlaybookRequest], list[Outcome]]:
    """Return a request for each selected VM, and an outcome for each VM on which the action cannot run.

    A VM's identity is the members of `vm` that identify the VM, such as `vmid`. The identity is read from Proxmox.
    """
    reader = ProxmoxReader(ProxmoxConnection.from_settings(settings))
    vm_rows = reader.vms()
    requests: list[PlaybookRequest] = []
    outcomes: list[Outcome] = []
    for vmid in play_hosts.find_vmids(settings, hosts_options.pattern):
        try:
            identity = read_identity(reader, find_row_by_vmid(vm_rows, vmid))
        # UnusableArgument: the agent's token does not see the VM, or the VM has no marker.
        # JobError: for example, the VM's node does not answer.
        except (UnusableArgument, JobError) as error:
            outcomes.append(Outcome(vm={"vmid": vmid}, problem=str(error)))
            continue
        vm = make_vm_variable(dict(vm_members_from_operator), action, settings, identity, vm_member_specs)
        requests.append(build_request(action, vm, vm_member_specs, is_check_mode=hosts_options.is_check_mode))
    return requests, outcomes


def _run_requests(  # noqa: PLR0913, PLR0917 (each value is needed for a run)
    requests: list[PlaybookRequest],
    settings: Settings,
    engine: Engine | None,
    hosts_options: HostsOptions,
    stopper: PlaybookStopper,
    output: IO[str],
) -> list[Outcome]:
    """Run all requests, and return their outcomes. Ctrl-C ends the running playbooks; no other playbook is started."""
    output_lock = threading.Lock()

    def run(request: PlaybookRequest) -> Outcome:
        if stopper.is_stopped:
            return Outcome(vm=dict(request.vm), problem=NOT_RUN_TEXT)
        prefixed_output = PrefixedOutput(output, sanitized(str(request.vm["name"])), output_lock)
        return _run_request(request, settings, engine, hosts_options.reason, stopper, prefixed_output)

    with ThreadPoolExecutor(hosts_options.max_parallel, thread_name_prefix="play") as pool:
        futures = [pool.submit(run, request) for request in requests]
        try:
            return _outcomes_of(futures)
        except KeyboardInterrupt:
            show_error("interrupted: stopping the running playbooks; this takes some seconds")
            stopper.stop()
            return _outcomes_of(futures)


def _outcomes_of(futures: list[Future[Outcome]]) -> list[Outcome]:
    return [future.result() for future in futures]


def _run_request(  # noqa: PLR0913, PLR0917 (each value is needed for a run)
    request: PlaybookRequest,
    settings: Settings,
    engine: Engine | None,
    reason: str,
    stopper: PlaybookStopper,
    output: Output,
) -> Outcome:
    """Run one request, and write what its playbook prints to the text stream `output`.

    Outside check mode, `lock_service_of_vm` stores the run in the database. Until the run ends, no agent claims a job
    of the VM's service. If `engine` is None or the VM has no service, the run is not stored. A SmithError becomes a
    failed outcome.
    """
    try:
        if request.is_check_mode:
            return Outcome(vm=dict(request.vm), result=ansible_playbook.run(request, settings, output, stopper=stopper))
        with lock_service_of_vm(engine, request.action, request.vm, reason) as lock:
            result = ansible_playbook.run(request, settings, output, lock, stopper)
            return Outcome(vm=dict(request.vm), result=result, run_ident=lock.run_ident)
    except SmithError as error:
        return Outcome(vm=dict(request.vm), problem=str(error))


def _show_outcomes(outcomes: list[Outcome], *, is_check_mode: bool, as_json: bool) -> None:
    """Print a row for each VM, and the numbers of successes and failures; or print one JSON document."""
    if as_json:
        show_json({"vms": [_json_fields(outcome, is_check_mode=is_check_mode) for outcome in outcomes]})
        return
    show_heading("Plan" if is_check_mode else "Summary")
    show_rows([_table_row(outcome) for outcome in outcomes], COLUMNS, if_empty="no VM")
    failed_count = sum(not outcome.succeeded for outcome in outcomes)
    show_text(f"{len(outcomes) - failed_count} succeeded, {failed_count} failed")


def _json_fields(outcome: Outcome, *, is_check_mode: bool) -> dict[str, Any]:
    """Return the JSON document of one VM. It contains the VM's identity even if the playbook did not run."""
    # `code=None`: there is no error code, because the playbook did not run.
    result = outcome.result or JobResult(succeeded=False, code=None, detail=outcome.problem)
    # `smith play --hosts` never updates a mapping.
    document = play_result.result_document(
        result, run_ident=outcome.run_ident, is_check_mode=is_check_mode, is_mapping_updated=False
    )
    identity: dict[str, Any] = {name: outcome.vm[name] for name in ("vmid", "name", "service_id") if name in outcome.vm}
    error_message = document["error_message"] or outcome.problem or None
    return {**document, **identity, "error_message": error_message}


def _table_row(outcome: Outcome) -> dict[str, Any]:
    """Return the row of one VM.

    `result.vm` is the playbook's fact `vm_result`. In check mode, `result.vm["planned"]` has the changes that the
    playbook would make.
    """
    result = outcome.result
    if result is None:
        return {
            "vmid": outcome.vm["vmid"],
            "name": outcome.vm.get("name"),
            "outcome": "failed",
            "detail": outcome.problem,
        }
    planned_changes_text = (
        "; ".join(play_plan.describe_changes(result.vm["planned"])) if result.vm.get("planned") else ""
    )
    return {
        "vmid": outcome.vm["vmid"],
        "name": outcome.vm.get("name"),
        "outcome": "ok" if result.succeeded else "failed",
        "changed": bool(result.vm.get("changed")),
        "run_ident": outcome.run_ident,
        "detail": planned_changes_text if result.succeeded else result.operator_message,
    }
