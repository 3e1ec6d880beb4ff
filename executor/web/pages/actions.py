"""Executes the actions of operators (retry, cancel, pause, drain and so on), which a form on a web page requests.

Each action needs a login session, and a form token, which proves that a page of this session has sent the form. An
action that changes something also needs a confirmation, and is recorded in the audit log.

"The agents" are all agent processes that use the database. While they are paused, they claim no jobs. To drain an agent
process is to pause only this process: it claims no more jobs until it is resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from executor.database import agent_queries, operator_changes, queries
from executor.database.engine import read_only_session, transaction
from executor.database.statements import fits_integer_column
from executor.database.tables.agents import AgentProcessRow
from executor.drift.repair import apply_repair
from executor.log import get_logger
from executor.web.pages.forms import read_form
from executor.web.pages.parts import PageContext, visitor_of

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
    from sqlalchemy.orm import Session

log = get_logger(__name__)

#: Maximum length of the form's field `reason` (the operator's reason for the action). A longer text is cut.
MAX_REASON_LENGTH = 500
#: The path of the page that shows the agent processes. The pages call them executors.
AGENTS_PAGE = "executors"


class ActionRefused(Exception):
    """The action is not possible now. The text of the exception is the reason, which the page shows."""


#: A function that executes an action of an operator. Its arguments are the page context (the objects that all pages
#: share, such as the renderer), the fields of the form, and the operator's name for the audit log. It returns the path
#: of the page that the browser shows next. `context.agent_view()` returns the parts of the agent that the pages read,
#: such as the engine of its database.
OperatorAction = Callable[[PageContext, Mapping[str, str], str], str]


async def execute_operator_action(context: PageContext, request: Request) -> Response:
    """Execute the action of a form, and redirect the browser to the page that shows the change."""
    name = request.path_params["name"]
    action = ACTIONS.get(name)
    visitor = visitor_of(request)  # the operator who has sent the form: name and login session
    form = await read_form(request)
    form["reason"] = form.get("reason", "").strip()[:MAX_REASON_LENGTH]
    if action is None:
        return context.message_page(request, 404, "Not found", "There is no such action.")
    if not visitor.is_form_token_of_session(form.get("form_token", "")):
        return context.message_page(
            request,
            403,
            "Action not executed",
            "The form does not belong to your session: reload the page that contains it.",
        )
    if name not in ACTIONS_WITHOUT_CONFIRMATION and form.get("confirmed") != "yes":
        return context.message_page(request, 400, "Action not executed", "The action was not confirmed.")
    who = f"{visitor.name} (web)"
    try:
        next_page = await run_in_threadpool(action, context, form, who)
    except ActionRefused as refused:
        return context.message_page(request, 409, "Action not executed", str(refused))
    log.info("operator_action", action=name, who=who)
    return RedirectResponse(f"../{next_page}", status_code=303)


def _retry_job(context: PageContext, form: Mapping[str, str], who: str) -> str:
    job_id = _find_job_id(context, form)
    with transaction(context.agent_view().engine) as session:
        if not operator_changes.retry_job(session, job_id, who=who):
            raise ActionRefused(
                "There is nothing to retry: the job is running, or FulcrumCore accepts no result of the job, for "
                "example because the job was deleted there. If the job has ended, request a new job in FulcrumCore."
            )
    return f"jobs/{job_id}"


def _cancel_job(context: PageContext, form: Mapping[str, str], who: str) -> str:
    job_id = _find_job_id(context, form)
    with transaction(context.agent_view().engine) as session:
        if operator_changes.cancel_job(session, job_id, who=who, reason=form["reason"]) is None:
            raise ActionRefused("The job has ended already.")
    return f"jobs/{job_id}"


def _pause_all_agent_processes(context: PageContext, form: Mapping[str, str], who: str) -> str:
    reason = form["reason"]
    if not reason:
        raise ActionRefused("A pause needs a reason, which all operators see while the agents are paused.")
    with transaction(context.agent_view().engine) as session:
        if not operator_changes.pause_agents(session, who=who, reason=reason):
            raise ActionRefused("All agent processes are paused already.")
    return AGENTS_PAGE


def _resume_all_agent_processes(context: PageContext, _form: Mapping[str, str], who: str) -> str:
    with transaction(context.agent_view().engine) as session:
        if operator_changes.resume_agents(session, who=who) is None:
            raise ActionRefused("The agents are not paused.")
    return AGENTS_PAGE


def _drain_agent_process(context: PageContext, form: Mapping[str, str], who: str) -> str:
    reason = form["reason"]
    if not reason:
        raise ActionRefused("A drain needs a reason, which all operators see until the agent process is resumed.")
    with transaction(context.agent_view().engine) as session:
        if not operator_changes.pause_agent_process(
            session, _find_agent_process(session, form), who=who, reason=reason
        ):
            raise ActionRefused("The agent process is drained already.")
    return AGENTS_PAGE


def _resume_agent_process(context: PageContext, form: Mapping[str, str], who: str) -> str:
    with transaction(context.agent_view().engine) as session:
        if operator_changes.resume_agent_process(session, _find_agent_process(session, form), who=who) is None:
            raise ActionRefused("The agent process is not drained.")
    return AGENTS_PAGE


def _repair_finding(context: PageContext, form: Mapping[str, str], who: str) -> str:
    """Repair a difference between mappings, Proxmox and FulcrumCore that the last drift check has found (a finding).

    The repair changes a mapping, never a VM.
    """
    view = context.agent_view()
    key = (form.get("kind", ""), form.get("service", ""), form.get("vmid", ""))
    for finding in view.list_drift_findings() or ():  # None if there is no recent drift check
        if (finding.kind.value, finding.service_id, str(finding.vmid or "")) == key and finding.repair is not None:
            if apply_repair(view.engine, view.settings.smith_cluster, finding, who=who, reason=form["reason"]):
                return "vms"
            raise ActionRefused(
                "The mapping has changed since the drift check, or the service is busy (open job, unreported result or "
                "running playbook). Try again after the next drift check."
            )
    raise ActionRefused(
        "There is no recent drift check, or the last drift check did not find this difference. Reload the page after "
        "the next drift check."
    )


def _run_preflight_checks(context: PageContext, _form: Mapping[str, str], _who: str) -> str:
    """Run the preflight checks. They change nothing, so no audit entry is written."""
    context.preflight_checks.run()
    return "doctor"


def _find_job_id(context: PageContext, form: Mapping[str, str]) -> int:
    """Return the number in the form's field `job`. Raises ActionRefused if there is no job with this number."""
    text = form.get("job", "")
    job_id = int(text) if fits_integer_column(text) else 0  # no job has the number 0
    with read_only_session(context.agent_view().engine) as session:
        if queries.get_job(session, job_id) is None:
            raise ActionRefused("There is no such job.")
    return job_id


def _find_agent_process(session: Session, form: Mapping[str, str]) -> AgentProcessRow:
    """Return the row of the agent process (not a Proxmox node) whose id is in the form's field `node`.

    Raises ActionRefused if this process does not exist or has stopped.
    """
    agent_process = agent_queries.find_process_not_stopped(session, form.get("node", ""))
    if agent_process is None:
        raise ActionRefused("There is no such agent process, or it has stopped.")
    return agent_process


#: The function of each action, keyed by the last part of the path to which the form is sent.
ACTIONS: dict[str, OperatorAction] = {
    "retry": _retry_job,
    "cancel": _cancel_job,
    "pause": _pause_all_agent_processes,
    "resume": _resume_all_agent_processes,
    "drain": _drain_agent_process,
    "resume-node": _resume_agent_process,
    "repair": _repair_finding,
    "doctor": _run_preflight_checks,
}
#: The actions that need no confirmation, because they change nothing.
ACTIONS_WITHOUT_CONFIRMATION = frozenset({"doctor"})
