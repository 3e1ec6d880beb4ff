"""Claims, crashes, operators' commands and reports in random orders, and the invariants that hold after every step.

Hypothesis chooses the orders. A report is settled if no report is sent any more.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session
from support.databases import migrated_sqlite_file, new_job

from executor.database import free_vmids, job_queue, job_runs, mappings, other_leases, outbox, reaping, reopening
from executor.database.engine import open_engine, read_only_session, transaction
from executor.database.job_queue import Lease
from executor.database.tables.jobs import Job
from executor.database.tables.mappings import Mapping
from executor.database.times import db_now, utc_now
from executor.errors import JobError, StaleJob
from executor.model import (
    ENDED_STATUSES,
    MAX_CRASHES,
    MIN_CRASHES_FOR_PROBATION,
    JobResult,
    JobStatus,
    MappingState,
    ReportState,
)
from executor.shared.error_codes import ErrorCode

OWNERS = st.sampled_from(["alice", "bob"])
SERVICES = st.sampled_from([f"0000000{number}-0000-4000-8000-000000000000" for number in range(3)])
VMIDS = st.sampled_from([101, 102, 103])
DONE = JobResult(succeeded=True, vm={"vmid": 101, "status": "running"})
BROKEN = JobResult(succeeded=False, code=ErrorCode.VM_LOCKED, detail="busy")
REFUSED = JobResult(succeeded=False, code=ErrorCode.INVALID_REQUEST, detail="refused")
SETTLED = (ReportState.REPORTED, ReportState.ENDED_BY_FULCRUM, ReportState.ABANDONED)
#: The columns of a result.
RESULT_COLUMNS = ("status", "result", "error_code", "error_message", "finished_at")
#: The columns of a result and of FulcrumCore's answer to its report.
RESULT_AND_REPORT_COLUMNS = (*RESULT_COLUMNS, "report_state", "report_note", "reported_at", "report_attempts")
#: A folder in memory if possible, because the test commits thousands of times and does not test the disk.
MEMORY_FOLDER = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108  mkdtemp creates a unique folder


def columns(job: Job, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(job, name) for name in names}


class Queue(RuleBasedStateMachine):
    """Random steps of two agents on one database, of operators, and of the reporter."""

    template: Path

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="smith-machine-", dir=MEMORY_FOLDER))
        shutil.copyfile(self.template, self.folder / "smith.db")
        self.engine: Engine = open_engine(f"sqlite:///{self.folder / 'smith.db'}")
        self.ended: dict[int, dict[str, Any]] = {}
        self.settled: dict[int, dict[str, Any]] = {}
        self.epochs: dict[int, int] = {}

    def teardown(self) -> None:
        self.engine.dispose()
        shutil.rmtree(self.folder)

    jobs = Bundle("jobs")
    leases = Bundle("leases")

    @initialize(target=jobs, services=st.lists(SERVICES, min_size=4, max_size=8))
    def begin(self, services: list[str]) -> Any:
        return multiple(*(self._submit(service, "create", 1) for service in services))

    # --- agents ---------------------------------------------------------------------------------------------------

    @rule(target=jobs, service=SERVICES, action=st.sampled_from(["create", "stop"]), priority=st.integers(0, 2))
    def submit(self, service: str, action: str, priority: int) -> int:
        return self._submit(service, action, priority)

    def _submit(self, service: str, action: str, priority: int) -> int:
        with transaction(self.engine) as session:
            job_id = job_queue.submit(session, new_job(service_id=service, action=action, priority=priority))
        assert job_id is not None
        return job_id

    @rule(target=leases, owner=OWNERS, max_creates=st.sampled_from([None, None, 1]))
    def claim(self, owner: str, max_creates: int | None) -> Any:
        with transaction(self.engine) as session:
            job = job_queue.claim(session, owner, lease_s=30, max_creates=max_creates)
            creates = select(func.count()).where(Job.status == JobStatus.PROCESSING, Job.action == "create")
            running = session.scalar(creates) or 0
            crashes_of_jobs = select(Job.crashes).where(Job.status == JobStatus.PROCESSING, Job.owner == owner)
            crashes = session.scalars(crashes_of_jobs).all()
        assert len(crashes) <= 1 or max(crashes) < MIN_CRASHES_FOR_PROBATION, (
            "a job with MIN_CRASHES_FOR_PROBATION crashes runs alone"
        )
        if job is None:
            return multiple()
        assert job.action != "create" or max_creates is None or running <= max_creates
        assert job.epoch > self.epochs.get(job.id, 0), "an epoch is used once"
        self.epochs[job.id] = job.epoch
        return job_queue.lease_of(job)

    @rule(lease=leases, what=st.sampled_from(["finish", "fail", "requeue", "start"]))
    def write(self, lease: Lease, what: str) -> None:
        """Write under a lease. It succeeds only if the lease is the newest and the job has not ended."""
        before = self._row(lease.job_id)
        is_owner = before is not None and (before["owner"], before["epoch"], before["status"]) == (
            lease.owner,
            lease.epoch,
            JobStatus.PROCESSING,
        )
        try:
            with transaction(self.engine) as session:
                self._write(session, lease, what)
        except StaleJob:
            assert not is_owner
            assert self._row(lease.job_id) == before
        else:
            assert is_owner
        self._renew(lease.owner)

    def _renew(self, owner: str) -> None:
        with transaction(self.engine) as session:
            renewed = job_queue.renew_leases(session, owner, lease_s=30)
            held = select(Job.id, Job.cancel_requested).where(Job.owner == owner, Job.status == JobStatus.PROCESSING)
            assert renewed == {job_id: cancelled for job_id, cancelled in session.execute(held)}

    @staticmethod
    def _write(session: Session, lease: Lease, what: str) -> None:
        if what == "requeue":
            job_queue.requeue(session, lease, backoff_s=0, reason="later")
        elif what == "start":
            job_queue.store_fulcrum_claim_sent(session, lease)
            job_queue.store_fulcrum_claim_accepted(session, lease)
            job_runs.store_run_start(session, lease, run_ident=uuid.uuid4().hex, playbook="create.yml")
        else:
            job_queue.finish(session, lease, DONE if what == "finish" else BROKEN)

    @rule(target=leases, lease=leases, by=OWNERS, how=st.sampled_from(["lease", "sole owner", "release"]))
    def end_lease(self, lease: Lease, by: str, how: str) -> Any:
        """Take the job from its owner, then let an agent claim a job. The agent may be the same one.

        The lease ends because it has expired, because `by` is the sole owner (which reaps the jobs of
        all other owners at once), or because the owner releases its jobs.
        """
        with transaction(self.engine) as session:
            is_running = (Job.id == lease.job_id, Job.status == JobStatus.PROCESSING)
            session.execute(update(Job).where(*is_running).values(lease_until=db_now(-1)))
        with transaction(self.engine) as session:
            if how == "release":
                reaping.release_jobs_of_owner(session, lease.owner)
            leases = other_leases.leases_of_other_processes(session, by if how == "sole owner" else "none")
            reaped = reaping.reap(session, [other for other in leases if how == "sole owner" or other.is_expired])
            for job_id, status in reaped:
                job = session.get(Job, job_id)
                assert job is not None
                assert (job.status, job.crashes == MAX_CRASHES) == (status, status is JobStatus.FAILED)
        newer = self.claim(by, None)
        self.write(lease, "requeue")  # the earlier owner tries to write
        return newer

    # --- operators and the reporter -------------------------------------------------------------------------------

    @rule(job_id=jobs, what=st.sampled_from(["cancel", "retry", "postpone", "replace", "prune", *SETTLED]))
    def act_as_operator_or_reporter(self, job_id: int, what: str) -> None:
        if what == "prune":
            return self._prune()
        with transaction(self.engine) as session:
            if what == "cancel":
                job_queue.cancel_or_request_cancel(session, job_id)
            elif what == "retry":
                if reopening.retry_now(session, job_id) == "report":  # the report is due again
                    self.settled.pop(job_id, None)
            elif what == "postpone":
                outbox.postpone_report(session, job_id, backoff_s=3600, note="HTTP 503")
            elif what == "replace":
                # The only allowed change of a result: while the report is due, a completion may become a failure.
                outbox.replace_result(session, job_id, REFUSED)
                if job_id not in self.settled:
                    self.ended.pop(job_id, None)
            else:
                outbox.set_report_state(session, job_id, ReportState(what), "a note")
        return None

    def _prune(self) -> None:
        with transaction(self.engine) as session:
            must_remain = ~Job.status.in_(ENDED_STATUSES) | (Job.report_state == ReportState.DUE)
            kept = set(session.scalars(select(Job.id).where(must_remain)))
            job_queue.prune(session, ended_before=utc_now() + timedelta(hours=1), limit=2)
            remaining = set(session.scalars(select(Job.id)))
        assert kept <= remaining
        for pruned in set(self.ended) - remaining:
            del self.ended[pruned], self.settled[pruned]

    # --- mappings -------------------------------------------------------------------------------------------------

    @rule(service=SERVICES, vmid=VMIDS, adopt=st.booleans())
    def reserve(self, service: str, vmid: int, adopt: bool) -> None:
        with transaction(self.engine) as session:
            in_use = (Mapping.service_id == service) | (Mapping.vmid == vmid)
            is_free = session.scalar(select(Mapping.id).where(in_use, Mapping.state != MappingState.DELETED)) is None
            wanted = {"service_id": service, "cluster": "c", "vmid": vmid, "name": "vm"}
            mapping = (
                mappings.insert_active_mapping(session, node="n", **wanted)
                if adopt
                else mappings.reserve(session, **wanted)
            )
            assert (mapping is not None) == is_free
            self._pick_vmid(session)

    @staticmethod
    def _pick_vmid(session: Session) -> None:
        mapped_vmids = set(session.scalars(select(Mapping.vmid)))
        if mapped_vmids == {101, 102, 103}:
            with pytest.raises(JobError):
                free_vmids.pick_vmid(session, ("c", 101, 103), quarantine_s=3600, used_vmids=set())
        else:
            assert (
                free_vmids.pick_vmid(session, ("c", 101, 103), quarantine_s=3600, used_vmids=set()) not in mapped_vmids
            )

    @rule(service=SERVICES, what=st.sampled_from(["running", "absent", "release", "lose"]))
    def change_mapping(self, service: str, what: str) -> None:
        with transaction(self.engine) as session:
            mapping = mappings.find_current_mapping(session, service)
            if mapping is None:
                return
            if what == "release":
                mappings.mark_mapping_deleted(session, mapping.id, "taken")
            elif what == "lose":
                mappings.mark_vm_lost(session, mapping.id, "gone")
            else:
                mappings.apply_result(session, mapping.id, {"status": what})

    # --- invariants -----------------------------------------------------------------------------------------------

    @invariant()
    def rows_are_consistent(self) -> None:
        with read_only_session(self.engine) as session:
            jobs = session.scalars(select(Job)).all()
            current = session.scalars(select(Mapping).where(Mapping.state != MappingState.DELETED)).all()
        for job in jobs:
            has_ended = job.status in ENDED_STATUSES
            assert (job.lease_until is not None) == (job.status == JobStatus.PROCESSING)
            assert (job.report_state != ReportState.NONE) == (job.finished_at is not None) == has_ended
            assert (job.error_code is not None) == (job.status == JobStatus.FAILED)
            if has_ended:
                assert self.ended.setdefault(job.id, columns(job, RESULT_COLUMNS)) == columns(job, RESULT_COLUMNS)
            if has_ended and job.report_state != ReportState.DUE:
                assert self.settled.setdefault(job.id, columns(job, RESULT_AND_REPORT_COLUMNS)) == columns(
                    job, RESULT_AND_REPORT_COLUMNS
                )
        assert set(self.ended) <= {job.id for job in jobs if job.status in ENDED_STATUSES}
        processing = [job.service_id for job in jobs if job.status == JobStatus.PROCESSING]
        assert len(set(processing)) == len(processing)
        assert len({mapping.service_id for mapping in current}) == len(current)
        assert len({(mapping.cluster, mapping.vmid) for mapping in current}) == len(current)

    def _row(self, job_id: int) -> dict[str, Any] | None:
        with read_only_session(self.engine) as session:
            job = session.get(Job, job_id)
        return None if job is None else columns(job, tuple(column.key for column in Job.__table__.columns))


@pytest.fixture(scope="module", autouse=True)
def _template(tmp_path_factory: pytest.TempPathFactory) -> None:
    Queue.template = migrated_sqlite_file(tmp_path_factory.mktemp("machine"))


class TestQueue(Queue.TestCase):  # type: ignore[name-defined,misc]
    """The test of Hypothesis, with so few examples that it takes some seconds."""

    settings = settings(
        max_examples=20,
        stateful_step_count=50,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
