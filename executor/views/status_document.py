"""Reads the data of `smith status` from the database, and concludes whether agents, FulcrumCore and Proxmox work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from executor.database import agent_queries, mapping_queries, queries
from executor.database.times import utc_now
from executor.views.agent_liveness import agent_state, is_alive
from executor.views.critical_jobs import is_overdue
from executor.views.text import elapsed_text

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
    from executor.database.core_tables import Reader  # "core" is SQLAlchemy Core, not FulcrumCore
    from executor.database.tables.agents import (
        AgentProcessRow,
        CriticalJob,
        Pause,
    )
    from executor.database.tables.jobs import Job

#: The maximum number of agent processes, running or ended, that are shown. The process whose row was updated most
#: recently is first.
MAX_SHOWN_AGENTS = 10
#: The maximum number of postponed reports that are shown. A report is postponed if an attempt to send it has failed. If
#: there are more, the reports of the jobs that ended first are shown.
MAX_SHOWN_REPORTS = 10
#: The maximum number of jobs "claimed elsewhere" that are shown; the oldest are shown. Another installation of Agent
#: Smith has claimed such a job with this agent's token.
MAX_SHOWN_CLAIMED_ELSEWHERE = 10
#: The name of the critical job that sends the heartbeat.
HEARTBEAT = "Heartbeat"


@dataclass(frozen=True, kw_only=True)
class Status:
    """The JSON document of `smith status --json`, and three texts that `smith status` shows in place of some fields."""

    document: dict[str, Any]
    pause_text: str
    fulcrum_text: str
    proxmox_text: str


def read_status(reader: Reader, lease_s: float, *, should_count_ended_jobs: bool = True) -> Status:
    """Read the status from the database. `lease_s` is SMITH_LEASE_S.

    `reader` is a connection or session of SQLAlchemy.

    If `should_count_ended_jobs` is False, the ended jobs are not counted, and their counts are 0.
    """
    now = utc_now()
    job_counts = queries.count_jobs(reader, should_count_ended_jobs=should_count_ended_jobs)
    # `count_jobs` returns the number of jobs by status, and with the key `reports_due` the number
    # of reports that FulcrumCore has not acknowledged.
    due_report_count = job_counts.pop("reports_due")
    critical_jobs = agent_queries.list_critical_jobs(reader)
    running_agents = [
        agent for agent in agent_queries.processes_without_stop_time(reader) if is_alive(agent, now, lease_s)
    ]
    pause = agent_queries.find_pause(reader)
    fulcrum, fulcrum_text = _fulcrum_state(critical_jobs, now, is_agent_running=bool(running_agents))
    proxmox, proxmox_text = _proxmox_state(running_agents, now)
    document = {
        "agents_running": len(running_agents),
        # `concurrency_wanted` is the number of jobs that the process may run in parallel now. A process that
        # is `draining` has begun to stop, and claims no more jobs.
        "slots": sum(agent.concurrency_wanted for agent in running_agents if not agent.draining),
        "paused": _pause_fields(pause),
        "fulcrum": fulcrum,
        "proxmox": proxmox,
        "jobs": job_counts,
        "reports_due": due_report_count,
        "reports_postponed": [
            _postponed_report_fields(job) for job in queries.jobs_with_postponed_report(reader, MAX_SHOWN_REPORTS)
        ],
        # `since` is when an agent noticed the other installation's claim, and ended the job in this database.
        "claimed_elsewhere": [
            {"id": job.id, "action": job.action, "fulcrum_id": job.fulcrum_id, "since": job.finished_at}
            for job in queries.jobs_claimed_elsewhere(reader, MAX_SHOWN_CLAIMED_ELSEWHERE)
        ],
        "mappings": mapping_queries.count_mappings_by_state(reader),
        "nodes": [
            agent_process_fields(agent, now, lease_s)
            for agent in agent_queries.most_recently_seen_processes(reader, MAX_SHOWN_AGENTS)
        ],
        "critical_overdue": [job.name for job in critical_jobs if is_overdue(job, now)],
        # `failures` is the number of failed executions since the last success.
        "critical_failing": [_failing_critical_job_fields(job) for job in critical_jobs if job.failures],
    }
    text = "" if pause is None else f"{pause_text(pause)} (`smith resume` ends the pause)"
    return Status(document=document, pause_text=text, fulcrum_text=fulcrum_text, proxmox_text=proxmox_text)


def pause_text(pause: Pause) -> str:
    """Return a text with the start of a pause, the operator who started it, and the reason."""
    return f"since {pause.since:%Y-%m-%d %H:%M:%S}Z by {pause.who}: {pause.reason}"


def _pause_fields(pause: Pause | None) -> dict[str, Any] | None:
    return None if pause is None else {"since": pause.since, "who": pause.who, "reason": pause.reason}


def _fulcrum_state(
    critical_jobs: Sequence[CriticalJob], now: datetime, *, is_agent_running: bool
) -> tuple[dict[str, Any], str]:
    """Return whether FulcrumCore accepts heartbeats, for `--json` and as text."""
    heartbeat = next((job for job in critical_jobs if job.name == HEARTBEAT), None)
    last_ok_at = heartbeat.last_ok_at if heartbeat else None
    last_heartbeat_text = (
        f"the last accepted heartbeat was {elapsed_text(last_ok_at, now)} ago" if last_ok_at else "no heartbeat yet"
    )
    error = heartbeat.last_error if heartbeat and heartbeat.failures else None
    if not is_agent_running or heartbeat is None:
        state, text = "unknown", f"not known, because no agent is running ({last_heartbeat_text})"
        if is_agent_running:
            text = "not known: the agent has stored no heartbeat yet"
    elif error is not None:
        state, text = "failing", f"the heartbeat fails, {last_heartbeat_text}; error: {error}"
    elif is_overdue(heartbeat, now):
        state, text = "overdue", f"the heartbeat is overdue: {last_heartbeat_text}"
    else:
        state, text = "ok", f"ok, {last_heartbeat_text}"
    return {"state": state, "last_heartbeat_at": last_ok_at, "error": error}, text


def _proxmox_state(running_agents: Sequence[AgentProcessRow], now: datetime) -> tuple[dict[str, Any], str]:
    """Return whether Proxmox answered the last check of the running agents, for `--json` and as text."""
    agents_with_proxmox_check = [agent for agent in running_agents if agent.proxmox_checked_at is not None]
    if not agents_with_proxmox_check:
        reason = "the agent has not checked Proxmox yet" if running_agents else "no agent is running"
        return {"state": "unknown", "checked_at": None, "error": None}, f"not known, because {reason}"
    agent = next((agent for agent in agents_with_proxmox_check if agent.proxmox_error), agents_with_proxmox_check[0])
    ago = elapsed_text(agent.proxmox_checked_at, now)
    fields = {"checked_at": agent.proxmox_checked_at, "error": agent.proxmox_error}
    if agent.proxmox_error:
        return {"state": "failing", **fields}, f"the check {ago} ago failed: {agent.proxmox_error}"
    return {"state": "ok", **fields}, f"ok, it answered {ago} ago"


def _postponed_report_fields(job: Job) -> dict[str, Any]:
    """Return a job with a postponed report as a dictionary with the keys of `--json`.

    `report_note` says why the last report failed.
    """
    return {"id": job.id, "action": job.action, "attempts": job.report_attempts, "reason": job.report_note or ""}


def _failing_critical_job_fields(job: CriticalJob) -> dict[str, Any]:
    """Return a critical job whose last execution has failed as a dictionary with the keys of `--json`."""
    return {
        "name": job.name,
        "failures": job.failures,
        "last_ok_at": job.last_ok_at,
        "last_error": job.last_error,
    }


def agent_process_fields(agent_process: AgentProcessRow, now: datetime, lease_s: float) -> dict[str, Any]:
    """Return an agent process (a row of the table `nodes`) as a dictionary with the keys of `--json`."""
    return {
        "id": agent_process.id,  # a random id that the process chose at its start
        "host": agent_process.host,
        "pid": agent_process.pid,
        "version": agent_process.version,
        # FulcrumCore's id of the agent. None before the first heartbeat. It is stored only on PostgreSQL, where another
        # agent can use the same database. So on SQLite, it is always None.
        "agent_id": agent_process.agent_id,
        "cluster": agent_process.cluster,  # SMITH_CLUSTER, the name of the Proxmox cluster
        "state": agent_state(agent_process, now, lease_s),
        "started_at": agent_process.started_at,
        "seen_at": agent_process.seen_at,  # when the process was last known to be running
        "stopped_at": agent_process.stopped_at,
        "stop_reason": agent_process.stop_reason,
        "concurrency": agent_process.concurrency,  # the maximum number of parallel jobs
        "concurrency_wanted": agent_process.concurrency_wanted,  # the same, or less if an operator has set a limit
        "draining": agent_process.draining,
    }
