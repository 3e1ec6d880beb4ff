"""What an agent does with the jobs of an upgraded database: reap, claim and finish, without a playbook."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session
from support.database_contents import CLUSTER

from executor.database import free_vmids, job_queue, job_runs, mappings, outbox, reaping
from executor.database.engine import read_only_session, transaction
from executor.database.other_leases import leases_of_other_processes
from executor.database.tables.jobs import Job
from executor.database.tables.mappings import Mapping as MappingRow
from executor.model import JobResult, JobStatus, ReportState
from executor.shared.error_codes import ErrorCode
from executor.shared.marker import marker_for

#: The agent that runs after the upgrade.
AGENT = "node-of-now"


def claim_next_job(engine: Engine) -> Job | None:
    """Claim the next job of the queue; return None if there is none."""
    with transaction(engine) as session:
        return job_queue.claim(session, AGENT, lease_s=30)


def reap_and_claim_jobs(engine: Engine) -> dict[int, Job]:
    """Reap and claim, as an agent does after its start; return the claimed jobs."""
    with read_only_session(engine) as session:
        processing_job_ids = session.scalars(select(Job.id).where(Job.status == JobStatus.PROCESSING)).all()
        epochs = dict(session.execute(select(Job.id, Job.epoch)).all())
    assert len(processing_job_ids) >= 3
    with transaction(engine) as session:
        leases = leases_of_other_processes(session, AGENT)
        assert all(lease.is_expired for lease in leases)
        assert dict(reaping.reap(session, leases)) == dict.fromkeys(processing_job_ids, JobStatus.PENDING)
    claimed_jobs = {}
    while job := claim_next_job(engine):
        claimed_jobs[job.id] = job
    assert set(processing_job_ids) < set(claimed_jobs), "pending jobs are claimed, too"
    epochs_have_grown = all(job.epoch > epochs[job_id] for job_id, job in claimed_jobs.items())
    assert epochs_have_grown, "the earlier owner could still write results"
    return claimed_jobs


def finish(engine: Engine, job: Job) -> None:
    """Process a claimed job to its end, without a playbook."""
    lease = job_queue.lease_of(job)
    with transaction(engine) as session:
        if job.claimed_at is None and job.report_state != ReportState.LOCAL:
            job_queue.store_fulcrum_claim_sent(session, lease)
            job_queue.store_fulcrum_claim_accepted(session, lease)
        if job.defect or job.cancel_requested:
            code = ErrorCode.CANCELLED if job.cancel_requested else ErrorCode.INVALID_REQUEST
            job_queue.finish(session, lease, JobResult(succeeded=False, code=code, detail=job.defect or "by hand"))
            return
        job_runs.store_run_start(session, lease, run_ident=f"upgraded-{job.id}", playbook=f"{job.action}.yml")
        session.flush()
        mapping = mapping_of(session, job)
        vm = {"vmid": mapping.vmid, "node": "pve2", "status": "absent" if job.action == "delete" else "stopped"}
        run_end: dict[str, Any] = {"status": "successful", "rc": 0, "reason": "", "folder": "artifacts", "upids": []}
        job_runs.store_run_end(session, f"upgraded-{job.id}", **run_end)
        mappings.apply_result(session, mapping.id, vm)
        job_queue.finish(session, lease, JobResult(succeeded=True, vm=vm))


def mapping_of(session: Session, job: Job) -> MappingRow:
    """Return the mapping of the job's service. Reserve one if there is none, as before the job has started."""
    service_id = str(job.service_id)
    mapping = mappings.find_current_mapping(session, service_id)
    if mapping is None:
        assert job.run_ident is None, "a started job has its mapping"
        vmid = free_vmids.pick_vmid(session, (CLUSTER, 200_000, 200_999), quarantine_s=60, used_vmids=set())
        mapping = mappings.reserve(session, service_id=service_id, cluster=CLUSTER, vmid=vmid, name=f"new-{job.id}")
    assert mapping is not None
    assert mapping.marker == marker_for(service_id)
    return mapping


def due_reports(engine: Engine) -> dict[int, Job]:
    """Return, by id, the jobs whose reports must be sent now."""
    with read_only_session(engine) as session:
        return {job.id: job for job in outbox.jobs_with_due_report(session, 100)}


def job_row(engine: Engine, job_id: int) -> Job:
    with read_only_session(engine) as session:
        return session.get_one(Job, job_id)
