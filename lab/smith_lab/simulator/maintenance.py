"""Does FulcrumCore's maintenance work once: fails overdue jobs, deletes expired jobs, disconnects silent agents."""

from __future__ import annotations

from smith_lab.simulator.rows import Job, Json
from smith_lab.simulator.store import Store

TIMEOUT_MESSAGE = "Job marked as failed due to exceeding maximum processing time"


def fail_timed_out(store: Store, jobs: list[Job]) -> None:
    """Mark the jobs as failed by timeout, as FulcrumCore does. The state of a job's service does not change."""
    for job in jobs:
        store.set_job_status(job, "Failed")
        job.error_message = TIMEOUT_MESSAGE
        job.completed_at = store.clock.now()


def sweep(store: Store) -> Json:
    """Do the enabled parts of the maintenance once for all jobs and agents; return how many rows each part changed."""
    now, options = store.clock.now(), store.options
    result = {"timedOut": 0, "deleted": 0, "disconnected": 0}
    if options.job_maintenance:
        active = [job for job in store.jobs.values() if job.status in ("Pending", "Processing")]
        overdue = [job for job in active if now - job.created_at > options.job_timeout_s]
        fail_timed_out(store, overdue)
        ended = [job for job in store.jobs.values() if job.completed_at is not None]
        expired = [job for job in ended if now - (job.completed_at or now) > options.job_retention_s]
        for job in expired:
            store.delete_job(job)
        result.update(timedOut=len(overdue), deleted=len(expired))
    if options.agent_maintenance:
        result["disconnected"] = _disconnect_silent_agents(store, now)
    return dict(result)


def _disconnect_silent_agents(store: Store, now: float) -> int:
    """Disconnect the agents that sent no heartbeat for `agent_timeout_s`; return their number."""
    silent = [
        agent
        for agent in store.agents.values()
        if agent.status == "Connected" and now - agent.last_status_at > store.options.agent_timeout_s
    ]
    for agent in silent:
        agent.status = "Disconnected"
    return len(silent)
