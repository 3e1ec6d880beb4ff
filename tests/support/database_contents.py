"""What a recorded database holds: jobs, runs, mappings and reports in every state, written by the program's functions.

Each job's service has a name that says in which state the job or its VM was left.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session
from support.databases import new_job

from executor.database import audit, job_queue, job_runs, mappings, outbox, periods, reaping
from executor.database.engine import transaction
from executor.database.job_queue import Lease
from executor.database.other_leases import leases_of_other_processes
from executor.database.tables.agents import AgentProcessRow
from executor.database.tables.jobs import Job
from executor.database.tables.mappings import Mapping
from executor.database.times import utc_now
from executor.model import GuestKind, JobResult, JobStatus, ReportState
from executor.shared.error_codes import ErrorCode

#: The agent that was processing jobs when the database was recorded.
OWNER = "node-of-then"
CLUSTER = "pve"
#: The agent ended without releasing its jobs: their leases have expired.
EXPIRED_LEASE_S = -60.0
#: Longer than it takes to write all rows on a busy machine, because no later claim here may return the job.
SHORT_BACKOFF_S = 120.0
#: A backoff that ends after every test that restores the recorded database.
LONG_BACKOFF_S = 3650 * 86_400.0
#: Unix times from which deleted VMs may be purged: one that has passed, and one after every test.
LONG_PAST, FAR_AHEAD = 1_000_000_000, 4_000_000_000
TENANT, OTHER_TENANT = "6f9619ff-8b86-4d01-8b42-00cf4fc964ff", "9a3f2c4e-1111-4222-8333-444455556666"
CRITICAL_JOBS = ("GetPendingJobs", "PruneCompletedJobs", "PurgeDeletedVms", "ReportMetric", "Reconcile")


def fill(engine: Engine) -> None:
    """Write the rows. Each step is a transaction, as in the agent."""
    for step in (
        _write_agents,
        _write_critical_jobs,
        _write_reaped_job,
        _write_settled_jobs,
        _fill_outbox,
        _write_deletions,
        _write_jobs_in_flight,
        _write_pending_jobs,
        _write_audit,
    ):
        with transaction(engine) as session:
            step(session)


def _write_agents(session: Session) -> None:
    """Write one agent that runs and one that has stopped."""
    now = utc_now()
    common = {"host": "pve-ops", "version": "then", "started_at": now, "seen_at": now, "concurrency_wanted": 8}
    session.add(AgentProcessRow(id=OWNER, pid=7, concurrency=8, **common))
    stopped = {"stopped_at": now, "stop_reason": "max_runtime", "draining": True}
    session.add(AgentProcessRow(id="node-that-stopped", pid=6, concurrency=2, **common, **stopped))


def _write_critical_jobs(session: Session) -> None:
    periods.try_start_period(session, "Heartbeat", 10)
    periods.record_period_result(session, "Heartbeat", error="FulcrumUnavailable: PUT /agents/me/status: HTTP 503")
    for name in CRITICAL_JOBS:
        periods.try_start_period(session, name, 60)
        periods.record_period_result(session, name, error=None)


# --- one job at a time ------------------------------------------------------------------------------------------------


def _submit_job(session: Session, name: str, **wanted: Any) -> int:
    service = {"name": name, "properties": {"cores": 2, "memoryMb": 2048, "diskGb": 10, "image": "debian-12"}}
    job_id = job_queue.submit(session, new_job(**({"service": service, "priority": 9} | wanted)))
    assert job_id is not None
    return job_id


def _claim_job(session: Session, name: str, **wanted: Any) -> Job:
    """Submit a job whose service has this name, and claim it."""
    job_id = _submit_job(session, name, **wanted)
    job = job_queue.claim(session, OWNER, lease_s=EXPIRED_LEASE_S)
    assert job is not None
    assert job.id == job_id, "another job was next in the queue"
    return job


def _start_run(session: Session, name: str, **wanted: Any) -> tuple[Job, Lease]:
    """Claim a job, record that FulcrumCore has accepted the claim, and record the start of its run."""
    job = _claim_job(session, name, **wanted)
    lease = job_queue.lease_of(job)
    job_queue.store_fulcrum_claim_sent(session, lease)
    job_queue.store_fulcrum_claim_accepted(session, lease)
    job_runs.store_run_start(session, lease, run_ident=f"{job.action}-{name}", playbook=f"{job.action}.yml")
    session.flush()
    return job, lease


def _reserve_mapping(session: Session, job: Job, name: str, kind: str = GuestKind.QEMU) -> Mapping:
    assert job.service_id is not None
    vmid = 100_000 + job.id
    mapping = mappings.reserve(
        session, service_id=job.service_id, cluster=CLUSTER, vmid=vmid, name=f"{name}-{vmid}", kind=kind
    )
    assert mapping is not None
    return mapping


def _end_run(session: Session, job: Job, name: str) -> None:
    ident = f"{job.action}-{name}"
    upids = ["UPID:pve1:0000A:0000B:0000C:qmclone:9000:smith@pve!job:"]
    job_runs.store_run_end(
        session, ident, status="successful", rc=0, reason="", folder=f"artifacts/{ident}", upids=upids
    )


def _create_vm(session: Session, name: str, kind: str = GuestKind.QEMU, **wanted: Any) -> tuple[Job, Mapping]:
    """Create a VM. The job's report is due."""
    job, lease = _start_run(session, name, **wanted)
    mapping = _reserve_mapping(session, job, name, kind)
    vm = {"vmid": mapping.vmid, "node": "pve1", "status": "stopped", "mac_address": f"BC:24:11:00:00:{job.id:02X}"}
    _end_run(session, job, name)
    mappings.apply_result(session, mapping.id, vm)
    job_queue.finish(session, lease, JobResult(succeeded=True, vm=vm))
    return job, mapping


def _fail_job(session: Session, name: str, **wanted: Any) -> int:
    """End a job with an error. Its report is due."""
    job = _claim_job(session, name, **wanted)
    lease = job_queue.lease_of(job)
    job_queue.store_fulcrum_claim_accepted(session, lease)
    result = JobResult(succeeded=False, code=ErrorCode.CAPACITY, detail="no node has room")
    job_queue.finish(session, lease, result)
    return job.id


# --- what the database holds ------------------------------------------------------------------------------------------


def _write_reaped_job(session: Session) -> None:
    """Write a job whose first agent died and whose second attempt failed. It waits for the third."""
    job = _claim_job(session, "reaped")
    assert dict(reaping.reap(session, leases_of_other_processes(session, "another node"))) == {
        job.id: JobStatus.PENDING
    }
    second_attempt = job_queue.claim(session, OWNER, lease_s=EXPIRED_LEASE_S)
    assert second_attempt is not None
    job_queue.requeue(session, job_queue.lease_of(second_attempt), backoff_s=SHORT_BACKOFF_S, reason="NODE_DOWN: pve1")


def _write_settled_jobs(session: Session) -> None:
    """Write mappings of a VM, a container and a lost VM, and ended jobs in each state of a report that is settled."""
    for name, kind in (("reported", GuestKind.QEMU), ("container", GuestKind.LXC), ("vm-lost", GuestKind.QEMU)):
        job, mapping = _create_vm(session, name, kind, tenant_id=TENANT)
        outbox.set_report_state(session, job.id, ReportState.REPORTED)
        if name == "vm-lost":
            mappings.mark_vm_lost(session, mapping.id, "vanished")
    for name, state in (("ended-by-core", ReportState.ENDED_BY_FULCRUM), ("unknown-to-core", ReportState.ABANDONED)):
        outbox.set_report_state(session, _fail_job(session, name), state, "HTTP 400")


def _fill_outbox(session: Session) -> None:
    """Fill the outbox: two reports that can be sent now, one after a failed attempt, one with a long backoff."""
    _create_vm(session, "due", group_id=OTHER_TENANT)
    _fail_job(session, "failed-due", tenant_id=OTHER_TENANT)
    refused = "POST /jobs: HTTP 503"
    outbox.postpone_report(session, _fail_job(session, "tried-once"), backoff_s=0, note=refused)
    outbox.postpone_report(session, _fail_job(session, "postponed"), backoff_s=LONG_BACKOFF_S, note=refused)


def _write_deletions(session: Session) -> None:
    """Write services whose VM no longer exists, and deleted VMs that still exist: one to purge now, one much later."""
    for name, delete_at in (("deleted", None), ("purged", LONG_PAST), ("purge-now", LONG_PAST), ("later", FAR_AHEAD)):
        create, mapping = _create_vm(session, name)
        outbox.set_report_state(session, create.id, ReportState.REPORTED)
        job, lease = _start_run(session, name, service_id=create.service_id, action="delete")
        facts = {"status": "stopped", "node": "pve1", "delete_at": delete_at} if delete_at else {"status": "absent"}
        vm = {"vmid": mapping.vmid, **facts}
        _end_run(session, job, name)
        mappings.apply_result(session, mapping.id, vm)
        job_queue.finish(session, lease, JobResult(succeeded=True, vm=vm))
        outbox.set_report_state(session, job.id, ReportState.REPORTED)
        if name == "purged":
            _purge_vm(session, mapping)
        elif name == "purge-now":
            job_queue.submit(session, new_job(**_purge_job_values(mapping), priority=0))


def _purge_job_values(mapping: Mapping) -> dict[str, Any]:
    """Return the job that the agent submits when a deleted VM may be purged. FulcrumCore does not know it."""
    now = datetime.now(UTC)
    times = {"core_created_at": now, "deadline_at": now}
    return {"service_id": mapping.service_id, "action": "delete", "is_local": True, **times}


def _purge_vm(session: Session, mapping: Mapping) -> None:
    """Write the ended local job that purged the VM, and apply its result to the mapping."""
    job, lease = _start_run(session, "purged-local", **_purge_job_values(mapping))
    absent_vm = {"vmid": mapping.vmid, "status": "absent"}
    _end_run(session, job, "purged-local")
    mappings.apply_result(session, mapping.id, absent_vm)
    job_queue.finish(session, lease, JobResult(succeeded=True, vm=absent_vm))


def _write_jobs_in_flight(session: Session) -> None:
    """Write two creates whose playbook runs, one of them cancelled by an operator, and two jobs that were only claimed.

    The claim of one of these was not sent to FulcrumCore yet. That of the other was sent, but not answered."""
    _reserve_mapping(session, _start_run(session, "cloning", tenant_id=TENANT)[0], "cloning")
    cancelled, _ = _start_run(session, "cancelled")
    _reserve_mapping(session, cancelled, "cancelled")
    job_queue.cancel_or_request_cancel(session, cancelled.id)
    _claim_job(session, "claim-not-sent")
    job_queue.store_fulcrum_claim_sent(session, job_queue.lease_of(_claim_job(session, "claim-not-answered")))


def _write_pending_jobs(session: Session) -> None:
    """Write two requeued jobs, a start, a job with a defect, and one that an earlier agent claimed at FulcrumCore."""
    for name, backoff_s in (("requeued", SHORT_BACKOFF_S), ("requeued-for-long", LONG_BACKOFF_S)):
        lease = job_queue.lease_of(_claim_job(session, name))
        job_queue.requeue(session, lease, backoff_s=backoff_s, reason="PVE_UNREACHABLE: no connection")
    active = next(mapping for mapping in mappings.active_mappings(session) if mapping.name.startswith("reported-"))
    params = {"text": "ümläut 🙂", "number": 1.5}
    job_queue.submit(session, new_job(age=100, action="start", service_id=active.service_id, params=params))
    job_queue.submit(session, new_job(age=101, defect="action: missing"))
    job_queue.submit(session, new_job(age=102, tenant_id=OTHER_TENANT, is_claimed_at_fulcrum=True))


def _write_audit(session: Session) -> None:
    audit.add_entry(session, who="smith", verb="cancelled", subject_kind="job", subject_id=1, reason="by mistake")
    mapping = mappings.active_mappings(session)[0]
    facts = audit.column_values(mapping, audit.MAPPING_COLUMNS)
    audit.add_entry(
        session, who=audit.AGENT, verb="adopted", subject_kind="mapping", subject_id=mapping.service_id, after=facts
    )
