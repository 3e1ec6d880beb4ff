"""How the end of an attempt is stored, also when the database refuses the result; on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine
from support.databases import new_job

from executor.agent import outcome_store
from executor.agent.outcome import Outcome, outcome_of_attempt
from executor.agent.stop_signal import StopSignal
from executor.database import job_queue, mappings
from executor.database.engine import read_only_session, transaction
from executor.database.tables.jobs import Job
from executor.database.tables.mappings import Mapping
from executor.database.times import utc_now
from executor.errors import StaleJob
from executor.model import JobResult
from executor.shared.error_codes import ErrorCode

SERVICE = "00000000-0000-4000-8000-00000000000a"


def claim_new_job(engine: Engine) -> Job:
    with transaction(engine) as session:
        row = new_job(service_id=SERVICE, action="create", deadline_at=utc_now() + timedelta(seconds=250))
        job_queue.submit(session, row)
        job = job_queue.claim(session, "me", lease_s=300)
    assert job is not None
    return job


def reserve_vmid(engine: Engine) -> Mapping:
    with transaction(engine) as session:
        mapping = mappings.reserve(session, service_id=SERVICE, cluster="default", vmid=100, name="web")
    assert mapping is not None
    return mapping


def decision_of(job: Job, end: Any, **facts: Any) -> Callable[[bool], Outcome]:
    """Return a function that decides the outcome. Its argument: whether the database has refused the result."""
    return lambda refused: outcome_of_attempt(
        job,
        end,
        stop_reason=None,
        clock_offset_s=0.0,
        has_database_refused_result=refused,
        is_mapping_reserved=True,
        **facts,
    )


def read_row(engine: Engine, job: Job) -> Job:
    with read_only_session(engine) as session:
        return session.get_one(Job, job.id)


#: Results that PostgreSQL refuses and SQLite stores. In the agent, the runner already rejects most of them.
REFUSED_BY_POSTGRESQL = [
    {"vmid": 100, "mac_address": "BC:24:11:00:00:01,BC:24:11:00:00:02"},
    {"vmid": 100, "node": "x" * 300},
    {"vmid": 100, "node": "nul\0"},
]


@pytest.mark.parametrize("vm", REFUSED_BY_POSTGRESQL)
def test_a_result_that_the_database_refuses_ends_the_job(engine: Engine, vm: dict[str, Any]) -> None:
    job, mapping = claim_new_job(engine), reserve_vmid(engine)
    result = JobResult(succeeded=True, vm=vm)

    outcome_store.store_outcome(engine, decision_of(job, result), job_queue.lease_of(job), mapping)

    stored = read_row(engine, job)
    assert stored.finished_at is not None
    assert stored.report_state == "due"
    is_refused = engine.dialect.name == "postgresql"
    assert (stored.status, stored.error_code) == (("failed", "INTERNAL") if is_refused else ("completed", None))


def test_a_taken_vmid_ends_the_reservation_and_the_job_is_retried(engine: Engine) -> None:
    job, mapping = claim_new_job(engine), reserve_vmid(engine)
    vmid_taken = JobResult(succeeded=False, code=ErrorCode.VM_ID_TAKEN, detail="VM 100 belongs to another guest")

    outcome_store.store_outcome(engine, decision_of(job, vmid_taken), job_queue.lease_of(job), mapping)

    with read_only_session(engine) as session:
        assert session.get_one(Mapping, mapping.id).state == "deleted"
    assert read_row(engine, job).status == "pending"


def test_the_outcome_of_a_job_that_lost_its_lease_is_not_stored(engine: Engine) -> None:
    job, mapping = claim_new_job(engine), reserve_vmid(engine)
    result = JobResult(succeeded=True, vm={"vmid": 100})

    def decide_outcome(refused: bool) -> Outcome:
        return outcome_of_attempt(
            job, result, stop_reason=StopSignal.LEASE_LOST, clock_offset_s=0.0, has_database_refused_result=refused
        )

    with pytest.raises(StaleJob):
        outcome_store.store_outcome(engine, decide_outcome, job_queue.lease_of(job), mapping)

    assert read_row(engine, job).status == "processing"


@pytest.mark.parametrize(("counts", "next_attempt"), [(True, 2), (False, 1)])
def test_a_requeue_says_whether_the_ended_attempt_counts(engine: Engine, counts: bool, next_attempt: int) -> None:
    job = claim_new_job(engine)
    with transaction(engine) as session:
        job_queue.requeue(session, job_queue.lease_of(job), backoff_s=0, counts_as_attempt=counts)
        again = job_queue.claim(session, "me", lease_s=300)
    assert again is not None
    assert again.attempt == next_attempt
