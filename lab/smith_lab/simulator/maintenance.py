"""Does the maintenance work that FulcrumCore does periodically.

The work has three parts: fail overdue jobs, delete old jobs, and set agents that sent no heartbeat to Disconnected.
"""

from __future__ import annotations

from smith_lab.simulator.rows import Job, Json
from smith_lab.simulator.store import Store

TIMEOUT_MESSAGE = "Job marked as failed due to exceeding maximum processing time"


def fail_jobs_by_timeout(store: Store, jobs: list[Job]) -> None:
    """Mark the jobs as failed by timeout, as FulcrumCore does. The states of the jobs' services do not change."""
    for job in jobs:
        store.set_job_status(job, "Failed")
        job.error_message = TIMEOUT_MESSAGE
        job.completed_at = store.clock.now()


def sweep(store: Store) -> Json:
    """Do the maintenance work once; return how many rows each part changed.

    Skip the parts that the server options `job_maintenance` and `agent_maintenance` turn off.
    """
    now, options = store.clock.now(), store.options
    result = {"timedOut": 0, "deleted": 0, "disconnected": 0}
    if options.job_maintenance:
        active_jobs = [job for job in store.jobs.values() if job.status in ("Pending", "Processing")]
        overdue_jobs = [job for job in active_jobs if now - job.created_at > options.job_timeout_s]
        fail_jobs_by_timeout(store, overdue_jobs)
        old_jobs = [
            job
            for job in store.jobs.values()
            if job.completed_at is not None and now - job.completed_at > options.job_retention_s
        ]
        for job in old_jobs:
            store.delete_job(job)
        result.update(timedOut=len(overdue_jobs), deleted=len(old_jobs))
    if options.agent_maintenance:
        result["disconnected"] = _disconnect_silent_agents(store, now)
    return dict(result)


def _disconnect_silent_agents(store: Store, now: float) -> int:
    """Set agents that sent no heartbeat for `agent_timeout_s` to Disconnected; return their number."""
    # `last_status_at` is the time of the agent's last heartbeat, or of its creation.
    silent_agents = [
        agent
        for agent in store.agents.values()
        if agent.status == "Connected" and now - agent.last_status_at > store.options.agent_timeout_s
    ]
    for agent in silent_agents:
        agent.status = "Disconnected"
    return len(silent_agents)
