"""FulcrumCore's maintenance workers, run once: job timeout, job retention, silent agents."""

from __future__ import annotations

from smith_lab.simulator.rows import Job, Json
from smith_lab.simulator.store import Store

TIMEOUT_MESSAGE = "Job marked as failed due to exceeding maximum processing time"


def fail_timed_out(store: Store, jobs: list[Job]) -> None:
    """Fail the jobs, as the maintenance worker does. Their services do not change."""
    for job in jobs:
        store.set_job_status(job, "Failed")
        job.error_message = TIMEOUT_MESSAGE
        job.completed_at = store.clock.now()


def sweep(store: Store) -> Json:
    """Run timeout, retention and, if enabled, the disconnect worker once; return how many rows each changed."""
    now, options = store.clock.now(), store.options
    result = {"timedOut": 0, "deleted": 0, "disconnected": 0}
    if options.job_maintenance:
        active = [job for job in store.jobs.values() if job.status in ("Pending", "Processing")]
        late = [job for job in active if now - job.created_at > options.job_timeout_s]
        fail_timed_out(store, late)
        ended = [job for job in store.jobs.values() if job.completed_at is not None]
        old = [job for job in ended if now - (job.completed_at or now) > options.job_retention_s]
        for job in old:
            store.delete_job(job)
        result.update(timedOut=len(late), deleted=len(old))
    if options.agent_maintenance:
        result["disconnected"] = _disconnect_silent(store, now)
    return dict(result)


def _disconnect_silent(store: Store, now: float) -> int:
    silent = [
        agent
        for agent in store.agents.values()
        if agent.status == "Connected" and now - agent.last_status_at > store.options.agent_timeout_s
    ]
    for agent in silent:
        agent.status = "Disconnected"
    return len(silent)
