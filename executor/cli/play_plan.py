"""Shows what `smith play` is about to do. On a terminal, asks for confirmation before an action changes something.

In check mode, the playbook of an action reports the dictionary `planned`, which has the changes that it would make.
This dictionary is called the plan, and its keys are called members.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import typer

from executor.cli import ansible_playbook, arguments
from executor.cli.ansible_playbook import PlaybookRequest
from executor.cli.arguments import EXIT_INTERRUPTED
from executor.cli.output import show_error, show_text
from executor.cli.play_target import Target, refuse_while_job_runs
from executor.cli.tables import show_fields, show_heading
from executor.database import queries
from executor.database.engine import read_only_session
from executor.errors import EXIT_FAILURE
from executor.model import ActionEffect, JobStatus
from executor.runs.actions import Action
from executor.settings.settings import Settings

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
    from sqlalchemy import Engine

    from executor.database.tables.jobs import Job

#: What an action would do, keyed by the value of the member `status` in the plan.
STATUS_TEXTS = {
    "running": "the VM will be started",
    "stopped": "the VM will be stopped",
    "restarted": "the VM will be restarted",
    "absent": "the VM will be destroyed with its disks",
}
#: What an action would do, keyed by the name of another member of the plan. `{}` is replaced by the member's value.
MEMBER_TEXTS = {
    "rolled_back_to": "the VM will be rolled back to the snapshot {}: everything written since then is lost",
    "snapshot": "the snapshot {} will be created",
    "backup": "a backup will be written to the storage {}",
    "node": "the VM will be moved to the node {}",
}
#: A note below the plan of an action that a provider has added, because this plan may be incomplete.
INCOMPLETE_PLAN_NOTE = (
    "(check mode skips Ansible tasks that do not support it, so the action may change more than this plan shows)"
)


def require_yes_or_terminal(
    action: Action, effect: ActionEffect, *, is_check_mode: bool, yes: bool, as_json: bool
) -> None:
    """Raise typer.BadParameter if the action destroys data and the operator cannot be asked.

    `effect` says whether the action reads, changes or destroys the VM or its data.
    """
    if effect != ActionEffect.DESTROYS or is_check_mode or yes:
        return
    if as_json or not sys.stdin.isatty():
        obstacle = "with --json the command asks no question" if as_json else "there is no terminal to ask on"
        raise typer.BadParameter(f"{action.name} destroys data, and {obstacle}: use --yes")


def must_show_plan(effect: ActionEffect, *, is_check_mode: bool, yes: bool, as_json: bool) -> bool:
    """Return whether the plan is shown before the action is run, so that the operator can confirm the plan."""
    return effect != ActionEffect.READS and not (is_check_mode or yes or as_json) and sys.stdin.isatty()


def show_target(request: PlaybookRequest, target: Target, engine: Engine | None) -> None:
    """Print the VM and its service. `engine` is None if there is no database.

    Raises CommandFailed if a job of the service is running, except in check mode.
    """
    vm, job = request.vm, None
    service_id = str(vm.get("service_id") or "")
    if engine is not None and service_id:
        if not request.is_check_mode:
            refuse_while_job_runs(engine, service_id)
        job = _newest_job(engine, service_id)
    node = f" on {vm['node']}" if vm.get("node") else ""
    show_heading("Target")
    service = job.service if job is not None and isinstance(job.service, dict) else {}
    show_fields(
        {
            "action": request.action + (" (check mode: nothing is changed)" if request.is_check_mode else ""),
            "vm": f"{vm.get('vmid', '')} ({vm.get('name', '')}){node}",
            "service": service_id,
            "service name": service.get("name"),
            # The customer who uses the service: the consumer in FulcrumCore, the tenant in our database.
            "consumer": job.tenant_id if job is not None else None,
            # The state of the mapping in which the result will be stored, for example `active`.
            "mapping": "no mapping is changed" if target.mapping is None else target.mapping.state,
        }
    )
    if job is not None and job.status == JobStatus.PENDING and not request.is_check_mode:
        show_text(f"job {job.id} ({job.action}) of this service waits until this run has ended")


def _newest_job(engine: Engine, service_id: str) -> Job | None:
    with read_only_session(engine) as session:
        return next(iter(queries.list_jobs(session, service_ids=[service_id], limit=1)), None)


def show_plan_and_confirm(action: Action, effect: ActionEffect, request: PlaybookRequest, settings: Settings) -> None:
    """Run the playbook in check mode, show the plan, and ask for confirmation.

    For a built-in action that destroys no data, the operator is not asked if the plan is empty.
    Raises typer.Exit if the operator does not agree, or if the playbook fails in check mode.
    """
    show_text("\nchecking what would be changed …")
    try:
        discarded_output = io.StringIO()
        result = ansible_playbook.run(replace(request, is_check_mode=True), settings, discarded_output)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if not result.succeeded:
        show_error(result.operator_message)
        show_error("the action failed in check mode, so it was not run; with --yes it runs without a plan")
        raise typer.Exit(EXIT_FAILURE)
    planned_changes = result.vm.get("planned") or {}  # `result.vm` is the playbook's fact `vm_result`
    for line in describe_changes(planned_changes):
        show_text(line)
    if not action.is_ours:  # a provider has added the action
        show_text(INCOMPLETE_PLAN_NOTE)
    elif not planned_changes and effect != ActionEffect.DESTROYS:
        return
    arguments.confirm(f"Run {request.action}{_target_text(request.vm)}?", yes=False)


def _target_text(vm: Mapping[str, Any]) -> str:
    """Return the VM and its service as text for the question, or '' for a provider's action that needs no VM."""
    name = f" ({vm['name']})" if vm.get("name") else ""
    vm_text = f" on VM {vm['vmid']}{name}" if vm.get("vmid") else ""
    return vm_text + (f" of service {vm['service_id']}" if vm.get("service_id") else "")


def describe_changes(planned_changes: Mapping[str, Any]) -> Iterator[str]:
    """Yield one sentence for each change in the plan."""
    if not planned_changes:
        yield "nothing would be changed"
        return
    delete_at = planned_changes.get("delete_at")
    for name, value in planned_changes.items():
        if name == "status":
            yield STATUS_TEXTS.get(str(value), f"the VM's status will be {value}")
        elif name in MEMBER_TEXTS:
            yield MEMBER_TEXTS[name].format(value)
        elif name != "delete_at":
            yield f"{name} will be {_value_text(value)}"
    if delete_at:
        deletion_time = datetime.fromtimestamp(delete_at, UTC)
        yield f"the VM will be marked for deletion, and destroyed after {deletion_time:%Y-%m-%d %H:%M}Z"


def _value_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_value_text(item)}" for name, item in value.items())
    return "empty" if value in ("", None) else str(value)
