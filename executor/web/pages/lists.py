"""The pages `executors` (the agent processes and the agents' periodic tasks), `settings` and `audit`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from executor.database import agent_queries, audit_queries, pause_scopes
from executor.database.engine import read_only_session
from executor.database.tables.agents import AgentProcessRow, Pause
from executor.database.times import utc_now
from executor.settings.display import setting_rows
from executor.views.agent_liveness import agent_state
from executor.views.audit_rows import change_text
from executor.views.critical_jobs import is_overdue
from executor.web.pages.forms import replace_unprintable
from executor.web.pages.parts import PageContext

#: The maximum number of shown agent processes, and of shown audit entries.
MAX_AGENT_COUNT, MAX_AUDIT_ENTRY_COUNT = 50, 100
#: A longer text in a filter is cut to this length.
MAX_FILTER_LENGTH = 100


def show_agent_processes(context: PageContext, request: Request) -> Response:
    """Return the page with the agent processes and the critical jobs, which are the agents' periodic tasks.

    `context.agent_view()` contains the parts of the agent that pages read, such as the database and the settings.
    The scope of a pause says whether the pause applies to all agents, or to one agent process (a node).
    """
    view, now = context.agent_view(), utc_now()
    with read_only_session(view.engine) as session:
        agents = agent_queries.most_recently_seen_processes(session, MAX_AGENT_COUNT)
        critical_jobs = agent_queries.list_critical_jobs(session)
        # `pause` is the pause of all agents, `node_pauses` are the pauses of single agent processes.
        pause, node_pauses = agent_queries.find_pause(session), agent_queries.process_pauses_by_scope(session)
    lease_s = view.settings.smith_lease_s
    return context.renderer.render_page(
        request,
        "executors.html",
        agents=[
            _agent_row(agent, node_pauses.get(pause_scopes.scope_of_agent_process(agent)), now, lease_s)
            for agent in agents
        ],
        critical_jobs=[
            # `failures` is the number of failed executions since the last success.
            (job, _critical_job_state(job.failures, is_job_overdue=is_overdue(job, now)))
            for job in critical_jobs
        ],
        own_boot_id=view.boot_id,  # the id of the agent process that serves this page
        pause=pause,
    )


def _agent_row(agent: AgentProcessRow, pause: Pause | None, now: datetime, lease_s: float) -> dict[str, Any]:
    """Return the values that the page shows about an agent process.

    The state of a running process is shown as `paused` if an operator has paused the process. `can_drain` says
    whether the page shows the button `Drain`, which pauses the process.
    """
    is_stopped, state = agent.stopped_at is not None, agent_state(agent, now, lease_s)
    return {
        "agent": agent,
        "state": "paused" if pause is not None and state == "running" else state,
        "pause": None if is_stopped else pause,
        "can_drain": not is_stopped and pause is None,
    }


def _critical_job_state(failure_count: int, *, is_job_overdue: bool) -> str:
    if is_job_overdue:
        return "overdue"
    return "failing" if failure_count else "ok"


def show_settings(context: PageContext, request: Request) -> Response:
    """Return the page with all settings and their origins. Secrets are masked."""
    return context.renderer.render_page(request, "settings.html", rows=setting_rows(context.agent_view().settings))


def show_audit(context: PageContext, request: Request) -> Response:
    """Return the page with the newest entries of the audit log.

    The subject of an entry is the id of the changed object, and the verb is the kind of change. The page can be
    filtered by the beginning of the subject and by the verb.
    """
    subject = replace_unprintable(request.query_params.get("subject", "")).strip()[:MAX_FILTER_LENGTH]
    verb = replace_unprintable(request.query_params.get("verb", "")).strip()[:MAX_FILTER_LENGTH]
    with read_only_session(context.agent_view().engine) as session:
        entries = audit_queries.list_entries(session, subject_id_prefix=subject, verb=verb, limit=MAX_AUDIT_ENTRY_COUNT)
    rows = [(entry, change_text(entry)) for entry in entries]
    return context.renderer.render_page(
        request, "audit.html", rows=rows, subject=subject, verb=verb, max_entry_count=MAX_AUDIT_ENTRY_COUNT
    )
