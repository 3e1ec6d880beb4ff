"""Every verb of the job queue, on SQLite and on PostgreSQL: the same statements must mean the same."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event, func, select, update
from sqlalchemy.orm import Session
from support.databases import LONG_AGO, new_job, row, submit

from executor.database import job_queue, nodes, outbox, periods, queries
from executor.database.engine import reading, transaction
from executor.database.job_queue import Lease
from executor.database.tables import CriticalJob, Job, Node, Run, db_now, utc_now
from executor.errors import ErrorCode, StaleJob
from executor.model import TRANSITIONS, JobResult, JobStatus, ReportState

LEASE_S = 30.0
DONE = JobResult(succeeded=True, vm={"vmid": 101, "status": "running"})
BROKEN = JobResult(succeeded=False, code=ErrorCode.CAPACITY, detail="no space")


def claim(engine: Engine, owner: str = "alice", **wanted: Any) -> Job | None:
    with transaction(engine) as session:
        return job_queue.claim(session, owner, **({"lease_s": LEASE_S} | wanted))


def claimed(engine: Engine, owner: str = "alice", **wanted: Any) -> Job:
    job = claim(engine, owner, **wanted)
    assert job is not None
    return job


def finish(engine: Engine, job: Job, result: JobResult = DONE) -> None:
    with transaction(engine) as session:
        job_queue.finish(session, job_queue.lease_of(job), result)


def requeue(engine: Engine, job: Job, pause_s: float = 0) -> None:
    with transaction(engine) as session:
        job_queue.requeue(session, job_queue.lease_of(job), backoff_s=pause_s, reason="later")


def reap(engine: Engine, sole_owner: str | None = None) -> list[tuple[int, JobStatus]]:
    with transaction(engine) as session:
        return job_queue.reap(session, sole_owner=sole_owner)


def let_lease_run_out(engine: Engine, job_id: int) -> None:
    with transaction(engine) as session:
        session.execute(update(Job).where(Job.id == job_id).values(lease_until=db_now(-1)))


def let_it_be_due(engine: Engine, job_id: int) -> None:
    with transaction(engine) as session:
        past = {"available_at": db_now(-1), "report_after": db_now(-1)}
        session.execute(update(Job).where(Job.id == job_id).values(**past))


def as_dict(engine: Engine, job_id: int) -> dict[str, Any]:
    job = row(engine, job_id)
    return {column.key: getattr(job, column.key) for column in Job.__table__.columns}


# --- submit -------------------------------------------------------------------------------------------------------


def test_submitting_the_same_job_twice_writes_one_row(engine: Engine) -> None:
    new = new_job()
    with transaction(engine) as session:
        first = job_queue.submit(session, new)
    with transaction(engine) as session:
        second = job_queue.submit(session, new)
        known = queries.known_fulcrum_ids(session, [new.fulcrum_id, str(uuid.uuid4())])
        rows = session.scalar(select(func.count()).select_from(Job))
    assert (first is not None, second, known, rows) == (True, None, {new.fulcrum_id}, 1)


def test_a_second_submit_changes_nothing_of_a_job_that_ended(engine: Engine) -> None:
    job_id = submit(engine, fulcrum_id=str(uuid.uuid4()))
    finish(engine, claimed(engine))
    before = as_dict(engine, job_id)
    with transaction(engine) as session:
        again = new_job(fulcrum_id=before["fulcrum_id"], action="delete", priority=9)
        assert job_queue.submit(session, again) is None
    assert as_dict(engine, job_id) == before


def test_two_pollers_at_the_same_moment_write_one_row(engine: Engine) -> None:
    jobs = [new_job() for _ in range(20)]
    together = threading.Barrier(4, timeout=60)

    def poll() -> int:
        together.wait()
        written = 0
        for new in jobs:
            with transaction(engine) as session:
                written += job_queue.submit(session, new) is not None
        return written

    with ThreadPoolExecutor(4) as pool:
        written = [future.result() for future in [pool.submit(poll) for _ in range(4)]]
    assert sum(written) == len(jobs)


def test_payload_and_times_come_back_as_they_went_in(engine: Engine) -> None:
    """JSON null and SQL NULL are one; a time keeps its zone and its microseconds on SQLite, too."""
    created = LONG_AGO + timedelta(microseconds=1)
    params = {"ключ": ["ü", "\U0001f600", None, True, 1.5, 2**63, {"a": []}]}
    job_id = submit(engine, params=params, service=None, core_created_at=created)
    job = row(engine, job_id)
    assert (job.params, job.service, job.core_created_at) == (params, None, created)
    with reading(engine) as session:
        assert session.scalar(select(Job.id).where(Job.service.is_(None))) == job_id


def test_a_naive_time_is_refused_before_it_is_stored(engine: Engine) -> None:
    with pytest.raises(Exception, match="naive datetime"):
        submit(engine, core_created_at=LONG_AGO.replace(tzinfo=None))


def test_a_job_that_core_has_as_ours_is_known_as_claimed(engine: Engine) -> None:
    job = row(engine, submit(engine, already_claimed=True))
    assert (job.status, job.claim_sent_at is not None, job.claimed_at is not None) == ("pending", True, True)


# --- claim --------------------------------------------------------------------------------------------------------


def test_the_highest_priority_is_taken_first_and_then_the_oldest(engine: Engine) -> None:
    late, early, urgent, tie = (
        submit(engine, priority=1, age=2),
        submit(engine, priority=1, age=1),
        submit(engine, priority=5, age=9),
        submit(engine, priority=1, age=2),
    )
    assert [claimed(engine).id for _ in range(4)] == [urgent, early, late, tie]
    assert claim(engine) is None


def test_a_burst_of_one_tenant_does_not_hold_up_the_others(engine: Engine) -> None:
    burst = [submit(engine, age=number, tenant_id="burst") for number in range(6)]
    late = [submit(engine, age=50 + number, tenant_id="late") for number in range(2)]
    nobodys = submit(engine, age=70)
    taken = [claimed(engine).id for _ in range(9)]
    assert taken == [burst[0], late[0], nobodys, burst[1], late[1], *burst[2:]]


def test_tenants_with_as_many_jobs_under_way_take_turns_by_age(engine: Engine) -> None:
    first = [submit(engine, age=2 * number, tenant_id="a") for number in range(3)]
    second = [submit(engine, age=2 * number + 1, tenant_id="b") for number in range(3)]
    assert [claimed(engine).id for _ in range(6)] == [first[0], second[0], first[1], second[1], first[2], second[2]]


def test_a_higher_priority_comes_before_fairness(engine: Engine) -> None:
    urgent = [submit(engine, age=9, priority=5, tenant_id="a") for _ in range(2)]
    other = submit(engine, age=1, priority=1, tenant_id="b")
    assert [claimed(engine).id for _ in range(3)] == [*urgent, other]


def test_fairness_keeps_the_limit_of_creates_and_lets_others_pass(engine: Engine) -> None:
    submit(engine, age=1, tenant_id="a")
    submit(engine, age=2, tenant_id="b")
    stop = submit(engine, age=3, action="stop", tenant_id="a")
    with transaction(engine) as session:
        creates = [job_queue.claim(session, "me", lease_s=LEASE_S, max_creates=1) for _ in range(3)]
    assert [job.id if job else None for job in creates][1:] == [stop, None]


def test_a_claim_says_who_and_how_often_and_starts_a_lease(engine: Engine) -> None:
    submit(engine)
    job = claimed(engine, "alice")
    assert (job.status, job.owner, job.epoch, job.attempt) == ("processing", "alice", 1, 1)
    with reading(engine) as session:
        inside = (Job.lease_until > db_now(LEASE_S - 10), Job.lease_until <= db_now(LEASE_S))
        assert session.execute(select(*inside)).one() == (True, True)


def test_one_job_of_a_service_is_processing_at_a_time(engine: Engine) -> None:
    service = str(uuid.uuid4())
    first, second = submit(engine, service_id=service, age=1), submit(engine, service_id=service, age=2)
    other = submit(engine, age=3)
    job = claimed(engine)
    assert (job.id, claimed(engine).id, claim(engine)) == (first, other, None)
    finish(engine, job)
    assert claimed(engine).id == second


def test_jobs_without_a_service_do_not_wait_for_each_other(engine: Engine) -> None:
    for _ in range(2):
        submit(engine, service_id=None)
    assert claimed(engine).id != claimed(engine).id


def test_the_database_itself_refuses_a_second_processing_job_of_a_service(engine: Engine) -> None:
    service = str(uuid.uuid4())
    submit(engine, service_id=service)
    second = submit(engine, service_id=service)
    claimed(engine)
    with pytest.raises(Exception, match=r"(?i)unique"), transaction(engine) as session:
        session.execute(update(Job).where(Job.id == second).values(status=JobStatus.PROCESSING))


def test_no_more_creates_than_allowed_run_at_once_but_other_actions_do(engine: Engine) -> None:
    creates = [submit(engine, action="create", age=age) for age in range(3)]
    stop = submit(engine, action="stop", age=9)
    running = [claimed(engine, max_creates=2) for _ in range(3)]
    assert [job.id for job in running] == [*creates[:2], stop]
    assert claim(engine, max_creates=2) is None
    finish(engine, running[0])
    assert claimed(engine, max_creates=2).id == creates[2]


def test_a_create_too_many_holds_up_nobody_of_a_lower_priority(engine: Engine) -> None:
    submit(engine, action="create", priority=9)
    stop = submit(engine, action="stop", priority=1)
    assert claimed(engine, max_creates=0).id == stop


def test_no_create_is_taken_when_none_is_allowed(engine: Engine) -> None:
    submit(engine, action="create")
    assert claim(engine, max_creates=0) is None


def test_claims_at_the_same_moment_respect_the_limit_of_creates(engine: Engine) -> None:
    for _ in range(16):
        submit(engine, action="create")
    together = threading.Barrier(8, timeout=60)

    def take(owner: int) -> int:
        together.wait()
        return sum(claim(engine, f"node-{owner}", max_creates=3) is not None for _ in range(2))

    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(take, range(8)))
    assert sum(taken) == 3


def test_a_job_that_waits_for_its_next_attempt_is_left_alone_until_then(engine: Engine) -> None:
    waiting = submit(engine, age=1)
    requeue(engine, claimed(engine), pause_s=3600)
    assert claim(engine) is None
    let_it_be_due(engine, waiting)
    again = claimed(engine)
    assert (again.id, again.attempt, again.epoch, again.available_at) == (waiting, 2, 2, None)


def test_a_job_that_is_put_back_is_nobodys_and_says_why(engine: Engine) -> None:
    submit(engine)
    requeue(engine, claimed(engine))
    job = row(engine, 1)
    assert (job.status, job.owner, job.lease_until, job.available_at) == ("pending", None, None, None)
    assert job.error_message == "later"


@pytest.mark.parametrize("pause_s", [0.5, 1.0, 60.0])
def test_a_pause_lasts_as_long_as_it_is_said_to(engine: Engine, pause_s: float) -> None:
    submit(engine)
    requeue(engine, claimed(engine), pause_s=pause_s)
    with reading(engine) as session:
        inside = (Job.available_at > db_now(pause_s - 5), Job.available_at <= db_now(pause_s))
        assert session.execute(select(*inside)).one() == (True, True)


def test_eight_threads_take_every_job_once_and_never_two_of_a_service(engine: Engine) -> None:
    services = [str(uuid.uuid4()) for _ in range(40)]
    with transaction(engine) as session:
        for number in range(160):
            job_queue.submit(session, new_job(service_id=services[number % 40], action="stop", age=number))
    lock, together = threading.Lock(), threading.Barrier(8, timeout=60)
    running: dict[str, int] = {}
    taken: list[int] = []
    overlaps: list[str] = []

    def work(owner: str) -> None:
        together.wait()
        while (job := claim(engine, owner)) is not None or _left(engine):
            if job is None:  # every service left is busy with another thread's job
                time.sleep(0.02)
                continue
            service = str(job.service_id)
            with lock:
                overlaps.extend([service] if service in running else [])
                running[service] = job.id
                taken.append(job.id)
            stored = row(engine, job.id)
            overlaps.extend([service] if stored.owner != owner else [])
            with lock:
                del running[service]
            finish(engine, job)

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(work, f"node-{number}") for number in range(8)]:
            future.result()
    assert (len(taken), len(set(taken)), overlaps) == (160, 160, [])
    with reading(engine) as session:
        assert queries.count_jobs(session)["completed"] == 160
        assert session.scalar(select(func.max(Job.attempt))) == 1


def _left(engine: Engine) -> bool:
    with reading(engine) as session:
        return queries.count_jobs(session)["pending"] > 0


def test_no_statement_of_a_jobs_way_is_turned_into_sql_twice(engine: Engine) -> None:
    """To compile a claim takes several times as long as to run it, and idle agents ask once a second."""
    outcomes: set[str] = set()

    def watch(_connection: Any, _cursor: Any, statement: str, _values: Any, context: Any, _many: bool) -> None:
        if context.compiled is not None and "SAVEPOINT" not in statement:
            outcomes.add(context.cache_hit.name)

    def go_the_way() -> None:
        submit(engine, tenant_id="a")
        job = claimed(engine, max_creates=3)
        with transaction(engine) as session:
            job_queue.renew(session, "alice", lease_s=LEASE_S)
            job_queue.reap(session)
            periods.try_start_period(session, "Poll", 1.0)
        requeue(engine, job, pause_s=60)
        let_it_be_due(engine, job.id)
        finish(engine, claimed(engine, max_creates=3))
        with transaction(engine) as session:
            outbox.postpone_report(session, job.id, backoff_s=60, note="later")
            assert outbox.due_reports(session, 10) == []

    go_the_way()
    event.listen(engine, "before_cursor_execute", watch)
    go_the_way()

    assert outcomes == {"CACHE_HIT"}


# --- the fence ----------------------------------------------------------------------------------------------------

Write = Callable[[Session, Lease], Any]
WRITES: dict[str, Write] = {
    "note_claim_sent": job_queue.note_claim_sent,
    "note_claimed": job_queue.note_claimed,
    "note_started": lambda session, lease: job_queue.note_started(
        session, lease, run_ident="run-1", playbook="create.yml"
    ),
    "finish": lambda session, lease: job_queue.finish(session, lease, DONE),
    "fail": lambda session, lease: job_queue.finish(session, lease, BROKEN),
    "requeue": lambda session, lease: job_queue.requeue(session, lease, backoff_s=0),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_the_owner_of_the_lease_may_write(engine: Engine, write: Write) -> None:
    submit(engine)
    job = claimed(engine)
    with transaction(engine) as session:
        write(session, job_queue.lease_of(job))
    assert as_dict(engine, job.id) != {column.key: getattr(job, column.key) for column in Job.__table__.columns}


@pytest.mark.parametrize("stolen_by", ["another owner", "the same owner again", "a reap", "a release", "an end"])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_stale_owner_writes_nothing(engine: Engine, write: Write, stolen_by: str) -> None:
    submit(engine)
    stale = job_queue.lease_of(claimed(engine, "alice"))
    _steal(engine, stale, stolen_by)
    before = as_dict(engine, stale.job_id)
    with pytest.raises(StaleJob), transaction(engine) as session:
        write(session, stale)
    assert as_dict(engine, stale.job_id) == before
    with reading(engine) as session:
        assert queries.runs_of(session, stale.job_id) == []


def _steal(engine: Engine, lease: Lease, how: str) -> None:
    if how == "an end":
        with transaction(engine) as session:
            return job_queue.finish(session, lease, BROKEN)
    if how == "a release":
        with transaction(engine) as session:
            assert job_queue.release_all(session, lease.owner) == 1
        return None
    let_lease_run_out(engine, lease.job_id)
    assert reap(engine) == [(lease.job_id, JobStatus.PENDING)]
    if how != "a reap":
        claimed(engine, lease.owner if how == "the same owner again" else "bob")
    return None


def test_a_lease_held_by_another_epoch_or_owner_is_no_lease(engine: Engine) -> None:
    submit(engine)
    lease = job_queue.lease_of(claimed(engine))
    for wrong in (
        Lease(job_id=lease.job_id, owner="bob", epoch=lease.epoch),
        Lease(job_id=lease.job_id, owner=lease.owner, epoch=lease.epoch + 1),
        Lease(job_id=lease.job_id, owner=lease.owner, epoch=lease.epoch - 1),
        Lease(job_id=lease.job_id + 1, owner=lease.owner, epoch=lease.epoch),
    ):
        with pytest.raises(StaleJob), transaction(engine) as session:
            job_queue.finish(session, wrong, DONE)
    assert row(engine, lease.job_id).status == "processing"


def test_a_row_that_nobody_claimed_gives_no_lease(engine: Engine) -> None:
    with pytest.raises(ValueError, match="not claimed"):
        job_queue.lease_of(row(engine, submit(engine)))


def test_an_owner_whose_lease_ran_out_but_was_not_reaped_may_still_finish(engine: Engine) -> None:
    """The epoch is the fence, never the clock: nobody else has it, so the result is the only one there is."""
    submit(engine)
    job = claimed(engine)
    let_lease_run_out(engine, job.id)
    finish(engine, job)
    assert row(engine, job.id).status == "completed"


# --- statuses -----------------------------------------------------------------------------------------------------

#: How each allowed move is made.
MOVES: dict[tuple[JobStatus, JobStatus], Write] = {
    (JobStatus.PENDING, JobStatus.PROCESSING): lambda session, _: job_queue.claim(session, "bob", lease_s=LEASE_S),
    (JobStatus.PENDING, JobStatus.FAILED): lambda session, lease: job_queue.request_cancel(session, lease.job_id),
    (JobStatus.PROCESSING, JobStatus.PENDING): WRITES["requeue"],
    (JobStatus.PROCESSING, JobStatus.COMPLETED): WRITES["finish"],
    (JobStatus.PROCESSING, JobStatus.FAILED): WRITES["fail"],
}
PAIRS = [(before, after) for before in JobStatus for after in JobStatus]


def _lease_in(engine: Engine, status: JobStatus) -> Lease:
    """Bring a job to a status; the lease is the one that was right while it was processed."""
    submit(engine)
    job = claimed(engine, "alice")
    lease = job_queue.lease_of(job)
    if status is JobStatus.PENDING:
        requeue(engine, job)
    elif status is not JobStatus.PROCESSING:
        finish(engine, job, DONE if status is JobStatus.COMPLETED else BROKEN)
    return lease


def test_every_allowed_move_has_a_way_to_make_it() -> None:
    assert set(MOVES) == {(before, after) for before in TRANSITIONS for after in TRANSITIONS[before]}


@pytest.mark.parametrize(("before", "after"), MOVES, ids=str)
def test_an_allowed_move_is_made(engine: Engine, before: JobStatus, after: JobStatus) -> None:
    lease = _lease_in(engine, before)
    with transaction(engine) as session:
        MOVES[before, after](session, lease)
    assert row(engine, lease.job_id).status == after


@pytest.mark.parametrize(("before", "after"), [pair for pair in PAIRS if pair not in MOVES], ids=str)
def test_a_move_that_is_not_allowed_is_refused(engine: Engine, before: JobStatus, after: JobStatus) -> None:
    """Everything that could lead to the status is tried; the row stays where it was."""
    lease = _lease_in(engine, before)
    was = as_dict(engine, lease.job_id)
    for (_, leads_to), move in MOVES.items():
        if leads_to is not after or (before, leads_to) in MOVES:
            continue
        with transaction(engine) as session:
            try:
                move(session, lease)
            except StaleJob:
                continue
    now = as_dict(engine, lease.job_id)
    assert now | {"cancel_requested": False} == was | {"cancel_requested": False}


def test_what_is_written_of_an_end(engine: Engine) -> None:
    done, broken = submit(engine, age=1), submit(engine, age=2)
    finish(engine, claimed(engine), DONE)
    finish(engine, claimed(engine), BROKEN)
    good, bad = row(engine, done), row(engine, broken)
    assert (good.status, good.result, good.error_code, good.error_message) == ("completed", DONE.vm, None, None)
    assert (bad.status, bad.result, bad.error_code) == ("failed", None, "CAPACITY")
    assert bad.error_message == "CAPACITY: no space"
    assert {good.report_state, bad.report_state} == {"due"}
    assert good.finished_at is not None
    assert (good.lease_until, good.owner) == (None, "alice")  # who did it is history


def test_a_run_is_on_disk_before_it_starts_and_is_closed_by_anybody(engine: Engine) -> None:
    submit(engine)
    job = claimed(engine)
    with transaction(engine) as session:
        job_queue.note_started(session, job_queue.lease_of(job), run_ident="create-1", playbook="create.yml")
    with transaction(engine) as session:
        job_queue.note_run_ended(
            session, "create-1", status="failed", rc=2, reason="CAPACITY: x", folder="f", upids=["UPID:a"]
        )
    with reading(engine) as session:
        run = queries.find_run(session, "create-1")
        assert run is not None
        assert queries.find_run(session, "create-2") is None
    assert (run.job_id, run.attempt, run.playbook, run.rc) == (job.id, 1, "create.yml", 2)
    assert run.started_at == row(engine, job.id).started_at is not None
    assert (run.status, run.upids, run.ended_at is not None) == ("failed", ["UPID:a"], True)
    assert row(engine, job.id).run_ident == "create-1"


# --- renew, reap, release -----------------------------------------------------------------------------------------


def test_renewing_extends_every_lease_of_the_owner_and_tells_what_was_cancelled(engine: Engine) -> None:
    for _ in range(3):
        submit(engine)
    mine, cancelled, others = claimed(engine, "alice"), claimed(engine, "alice"), claimed(engine, "bob")
    for job in (mine, cancelled, others):
        let_lease_run_out(engine, job.id)
    with transaction(engine) as session:
        assert job_queue.request_cancel(session, cancelled.id) is JobStatus.PROCESSING
        assert job_queue.renew(session, "alice", lease_s=LEASE_S) == {mine.id: False, cancelled.id: True}
    with reading(engine) as session:
        lease = Job.lease_until > db_now(LEASE_S - 10), Job.lease_until <= db_now(LEASE_S)
        assert session.execute(select(*lease).where(Job.id == mine.id)).one() == (True, True)
    assert reap(engine) == [(others.id, JobStatus.PENDING)]


def test_a_job_that_has_ended_has_no_lease_to_renew_and_is_not_released(engine: Engine) -> None:
    job_id = submit(engine)
    finish(engine, claimed(engine, "alice"))
    before = as_dict(engine, job_id)
    with transaction(engine) as session:
        assert job_queue.renew(session, "alice", lease_s=LEASE_S) == {}
        assert job_queue.release_all(session, "alice") == 0
        assert not job_queue.release(session, job_id, "alice")
    assert as_dict(engine, job_id) == before


def test_a_lease_that_was_reaped_is_not_renewed(engine: Engine) -> None:
    submit(engine)
    job = claimed(engine, "alice")
    let_lease_run_out(engine, job.id)
    reap(engine)
    claimed(engine, "bob")
    with transaction(engine) as session:
        assert job_queue.renew(session, "alice", lease_s=LEASE_S) == {}


def test_a_living_owner_is_not_reaped(engine: Engine) -> None:
    submit(engine)
    job = claimed(engine)
    assert reap(engine) == []
    assert row(engine, job.id).status == "processing"


def test_who_is_alone_reaps_everybody_else_at_once(engine: Engine) -> None:
    for _ in range(3):
        submit(engine)
    finish(engine, claimed(engine, "before the restart"))
    dead, own = claimed(engine, "before the restart"), claimed(engine, "me")
    assert reap(engine, sole_owner="me") == [(dead.id, JobStatus.PENDING)]
    job = row(engine, dead.id)
    assert (job.owner, job.lease_until, job.crashes, job.epoch) == (None, None, 1, dead.epoch + 1)
    assert (job.error_code, job.error_message, job.finished_at, job.report_state) == (None, None, None, "none")
    assert row(engine, own.id).status == "processing"


def test_the_third_crash_puts_a_job_in_quarantine(engine: Engine) -> None:
    job_id = submit(engine)
    outcomes = []
    for _ in range(3):
        let_lease_run_out(engine, claimed(engine).id)
        outcomes += reap(engine)
    assert [status for _, status in outcomes] == ["pending", "pending", "failed"]
    job = row(engine, job_id)
    assert (job.error_code, job.report_state, job.crashes) == ("QUARANTINED", "due", 3)
    assert job.error_message == "QUARANTINED: the agent stopped 3 times while it worked on this job"
    assert job.finished_at is not None
    assert claim(engine) is None


def test_a_job_that_was_there_at_two_crashes_runs_alone_so_that_its_neighbours_are_not_blamed(engine: Engine) -> None:
    suspect, neighbour = submit(engine, age=1), submit(engine, age=2)
    for _ in range(2):
        for _ in ("suspect", "neighbour"):
            claimed(engine, "a")
        reap(engine, sole_owner="nobody")
    fresh = submit(engine, age=0)
    assert claimed(engine, "b").id == fresh
    assert claim(engine, "b") is None, "the suspect waits until nothing runs beside it"
    assert claimed(engine, "c").id == suspect, "on another node nothing does"
    assert claim(engine, "c") is None, "and nothing is begun beside it"
    assert reap(engine, sole_owner="b") == [(suspect, JobStatus.FAILED)]
    assert row(engine, neighbour).crashes == 2


@pytest.mark.parametrize("end", ["finished", "cancelled", "quarantined"])
def test_a_job_of_our_own_is_never_reported_however_it_ends(engine: Engine, end: str) -> None:
    job_id = submit(engine, is_local=True)
    if end == "cancelled":
        with transaction(engine) as session:
            job_queue.request_cancel(session, job_id)
    elif end == "finished":
        lease = job_queue.lease_of(claimed(engine))
        with transaction(engine) as session:
            job_queue.finish(session, lease, JobResult(succeeded=True, vm={"vmid": 100}))
    else:
        for _ in range(3):
            let_lease_run_out(engine, claimed(engine).id)
            reap(engine)
    assert row(engine, job_id).report_state == "local"
    assert row(engine, job_id).status == ("completed" if end == "finished" else "failed")
    with reading(engine) as session:
        assert outbox.due_reports(session, 10) == []


def test_the_open_job_of_a_service_is_the_one_under_way(engine: Engine) -> None:
    service_id = str(uuid.uuid4())
    with reading(engine) as session:
        assert queries.find_open_job(session, service_id) is None
    first, _second = submit(engine, service_id=service_id, age=1), submit(engine, service_id=service_id, age=2)
    assert claimed(engine).id == first
    with reading(engine) as session:
        found = queries.find_open_job(session, service_id)
    assert found is not None
    assert found.id == first


def test_the_open_job_of_a_service_is_the_oldest_that_waits_and_none_of_anothers_or_that_ended(engine: Engine) -> None:
    service_id = str(uuid.uuid4())
    submit(engine, age=0)
    gone = submit(engine, service_id=service_id, age=1)
    waiting = [submit(engine, service_id=service_id, age=age) for age in (2, 3)]
    claimed(engine)
    job = claimed(engine)
    assert job.id == gone
    finish(engine, job)
    with reading(engine) as session:
        found = queries.find_open_job(session, service_id)
    assert found is not None
    assert found.id == waiting[0]
    late = claimed(engine)
    requeue(engine, late, pause_s=3600)
    under_way = claimed(engine)
    assert (late.id, under_way.id) == (waiting[0], waiting[1])
    with reading(engine) as session:
        found = queries.find_open_job(session, service_id)
    assert found is not None
    assert found.id == under_way.id


def test_the_runs_of_a_job_are_its_own_and_come_in_their_order(engine: Engine) -> None:
    for _ in range(2):
        submit(engine)
    job, other = claimed(engine), claimed(engine)
    with transaction(engine) as session:
        for ident, of in (("b-1", job), ("x-1", other), ("a-2", job)):
            job_queue.note_started(session, job_queue.lease_of(of), run_ident=ident, playbook="create.yml")
    with reading(engine) as session:
        assert [run.ident for run in queries.runs_of(session, job.id)] == ["b-1", "a-2"]


def test_an_orderly_stop_counts_as_no_crash_and_ends_the_lease(engine: Engine) -> None:
    for _ in range(3):
        submit(engine)
    mine = [claimed(engine, "alice").id for _ in range(2)]
    others = claimed(engine, "bob").id
    with transaction(engine) as session:
        assert job_queue.release_all(session, "alice") == 2
    released = [row(engine, job_id) for job_id in mine]
    assert {(job.status, job.owner, job.crashes, job.lease_until) for job in released} == {("pending", None, 0, None)}
    assert row(engine, others).status == "processing"


def test_one_job_that_its_owner_does_not_work_on_is_put_back_and_counts_as_no_crash(engine: Engine) -> None:
    for age in (1, 2):
        submit(engine, age=age)
    forgotten, other = claimed(engine, "alice"), claimed(engine, "alice")
    with transaction(engine) as session:
        assert not job_queue.release(session, forgotten.id, "bob")
        assert job_queue.release(session, forgotten.id, "alice")
        assert not job_queue.release(session, forgotten.id, "alice")
    job = row(engine, forgotten.id)
    assert (job.status, job.owner, job.crashes, job.epoch) == ("pending", None, 0, forgotten.epoch + 1)
    assert row(engine, other.id).status == "processing"


def test_a_cancel_survives_the_crash_of_the_agent_that_was_to_hear_of_it(engine: Engine) -> None:
    submit(engine)
    job = claimed(engine)
    with transaction(engine) as session:
        job_queue.request_cancel(session, job.id)
    reap(engine, sole_owner="the next one")
    assert claimed(engine).cancel_requested


# --- periods ------------------------------------------------------------------------------------------------------


def test_a_period_has_one_turn(engine: Engine) -> None:
    with transaction(engine) as session:
        first = periods.try_start_period(session, "prune", 3600)
        assert (first, periods.try_start_period(session, "prune", 3600)) == (True, False)
    with transaction(engine) as session:
        session.execute(update(CriticalJob).values(due_at=db_now(-1)))
        assert periods.try_start_period(session, "prune", 3600)


def test_a_period_ends_a_little_early_for_timers_that_fire_early(engine: Engine) -> None:
    with transaction(engine) as session:
        periods.try_start_period(session, "prune", 1000)
        early = select(CriticalJob.due_at <= db_now(801), CriticalJob.due_at <= db_now(790))
        assert session.execute(early).one() == (True, False)


def test_a_forced_turn_and_a_new_interval_do_not_wait(engine: Engine) -> None:
    with transaction(engine) as session:
        periods.try_start_period(session, "prune", 3600)
        assert periods.try_start_period(session, "prune", 3600, force=True)
        assert periods.try_start_period(session, "prune", 60)
        assert not periods.try_start_period(session, "prune", 60)


def test_ticks_at_the_same_moment_have_one_winner(engine: Engine) -> None:
    """The very first turn too, for which no row is there yet: every node starts with it."""
    together = threading.Barrier(6, timeout=60)

    def race(_: int) -> list[bool]:
        won = []
        for name in ("one", "two", "three", "four"):
            together.wait()
            with transaction(engine) as session:
                won.append(periods.try_start_period(session, name, 3600))
        return won

    with ThreadPoolExecutor(6) as pool:
        won = list(pool.map(race, range(6)))
    assert [sum(turns) for turns in zip(*won, strict=True)] == [1, 1, 1, 1]


def test_a_first_turn_does_not_depend_on_this_machines_clock(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node whose clock is an hour ahead of the database's must not wait an hour."""
    monkeypatch.setattr(periods, "utc_now", lambda: utc_now() + timedelta(hours=1))
    with transaction(engine) as session:
        assert periods.try_start_period(session, "prune", 3600)


def test_how_a_turn_ended_is_counted(engine: Engine) -> None:
    with transaction(engine) as session:
        periods.try_start_period(session, "poll", 2)
        for error in ("no route", "no route", None, "refused"):
            periods.record_period_result(session, "poll", error=error)
    with reading(engine) as session:
        (critical,) = queries.critical_jobs(session)
    assert (critical.runs, critical.failures, critical.last_error) == (4, 1, "refused")
    assert critical.last_ok_at is not None


def test_a_first_turn_has_begun_and_has_not_failed(engine: Engine) -> None:
    before = utc_now()
    with transaction(engine) as session:
        for name in ("poll", "beat", "prune"):
            periods.try_start_period(session, name, 2)
    with reading(engine) as session:
        turns = queries.critical_jobs(session)
    assert [turn.name for turn in turns] == ["beat", "poll", "prune"]
    assert {(turn.failures, turn.runs, turn.interval_s) for turn in turns} == {(0, 0, 2)}
    assert all(turn.last_started_at is not None and before <= turn.last_started_at <= utc_now() for turn in turns)


# --- reports ------------------------------------------------------------------------------------------------------


def ended(engine: Engine, **wanted: Any) -> int:
    job_id = submit(engine, **wanted)
    job = claimed(engine)
    assert job.id == job_id
    finish(engine, job)
    return job_id


def due(engine: Engine, limit: int = 50) -> list[int]:
    with reading(engine) as session:
        return [job.id for job in outbox.due_reports(session, limit)]


def test_reports_are_due_from_the_oldest_end_on(engine: Engine) -> None:
    submit(engine)
    first, second, third = (ended(engine, priority=5) for _ in range(3))
    assert due(engine) == [first, second, third]
    assert due(engine, limit=2) == [first, second]


def test_a_postponed_report_waits_and_a_hastened_one_does_not(engine: Engine) -> None:
    job_id = ended(engine)
    with transaction(engine) as session:
        outbox.postpone_report(session, job_id, backoff_s=3600, note="HTTP 503")
    assert due(engine) == []
    with transaction(engine) as session:
        assert outbox.reset_report_backoff(session) == 1
        assert outbox.reset_report_backoff(session) == 0
    job = row(engine, job_id)
    assert (due(engine), job.report_attempts, job.report_note) == ([job_id], 1, "HTTP 503")


def test_only_reports_that_are_due_are_hastened_and_one_operators_retry_hastens_one(engine: Engine) -> None:
    job_ids = [ended(engine) for _ in range(3)]
    with transaction(engine) as session:
        for job_id in job_ids:
            outbox.postpone_report(session, job_id, backoff_s=3600, note="HTTP 503")
        session.execute(update(Job).where(Job.id == job_ids[2]).values(report_state=ReportState.OVERTAKEN))
        assert job_queue.retry_now(session, job_ids[0]) == "report"
    assert due(engine) == [job_ids[0]]
    with transaction(engine) as session:
        assert outbox.reset_report_backoff(session) == 1
    assert due(engine) == job_ids[:2]


@pytest.mark.parametrize("state", [ReportState.REPORTED, ReportState.OVERTAKEN, ReportState.ABANDONED])
def test_a_report_is_settled_once(engine: Engine, state: ReportState) -> None:
    job_id = ended(engine)
    with transaction(engine) as session:
        outbox.note_reported(session, job_id, state, "said")
    settled = as_dict(engine, job_id)
    with transaction(engine) as session:
        outbox.note_reported(session, job_id, ReportState.OVERTAKEN, "said again")
        outbox.postpone_report(session, job_id, backoff_s=1, note="late")
        outbox.replace_result(session, job_id, BROKEN)
        assert outbox.reset_report_backoff(session) == 0
    assert as_dict(engine, job_id) == settled
    assert (settled["report_state"], settled["report_note"], due(engine)) == (state, "said", [])


def test_an_outcome_that_core_will_never_take_is_replaced_while_it_is_due(engine: Engine) -> None:
    job_id, other = ended(engine), ended(engine)
    with transaction(engine) as session:
        outbox.replace_result(session, job_id, BROKEN)
    assert row(engine, other).status == "completed"
    job = row(engine, job_id)
    assert (job.status, job.error_code, job.error_message) == ("failed", "CAPACITY", "CAPACITY: no space")
    assert due(engine) == [job_id, other]


def test_a_job_that_has_not_ended_has_no_report(engine: Engine) -> None:
    submit(engine)
    job = claimed(engine)
    with transaction(engine) as session:
        outbox.note_reported(session, job.id, ReportState.REPORTED)
        outbox.replace_result(session, job.id, BROKEN)
    after = row(engine, job.id)
    assert (after.report_state, after.status, due(engine)) == ("none", "processing", [])


# --- operators' verbs ---------------------------------------------------------------------------------------------


def test_cancelling_a_waiting_job_fails_it_at_once(engine: Engine) -> None:
    job_id = submit(engine)
    with transaction(engine) as session:
        assert job_queue.request_cancel(session, job_id) is JobStatus.FAILED
    job = row(engine, job_id)
    assert (job.status, job.error_code, job.report_state) == ("failed", "CANCELLED", "due")
    assert (job.error_message, job.epoch) == ("CANCELLED: cancelled by the operator", 1)
    assert job.finished_at is not None
    assert claim(engine) is None


def test_cancelling_and_retrying_are_meant_for_one_job(engine: Engine) -> None:
    wanted, other = submit(engine, age=1), submit(engine, age=2)
    for _ in range(2):
        requeue(engine, claimed(engine), pause_s=3600)
    before = as_dict(engine, other)
    with transaction(engine) as session:
        assert job_queue.retry_now(session, wanted) == "attempt"
        assert job_queue.request_cancel(session, wanted) is JobStatus.FAILED
    assert as_dict(engine, other) == before


def test_cancelling_a_running_job_asks_its_owner(engine: Engine) -> None:
    submit(engine)
    job = claimed(engine)
    with transaction(engine) as session:
        assert job_queue.request_cancel(session, job.id) is JobStatus.PROCESSING
    assert (row(engine, job.id).status, row(engine, job.id).cancel_requested) == ("processing", True)


def test_cancelling_an_ended_or_unknown_job_changes_nothing(engine: Engine) -> None:
    job_id = ended(engine)
    before = as_dict(engine, job_id)
    with transaction(engine) as session:
        assert job_queue.request_cancel(session, job_id) is None
        assert job_queue.request_cancel(session, job_id + 1) is None
    assert as_dict(engine, job_id) == before


def test_retrying_ends_the_wait_for_an_attempt_or_for_a_report(engine: Engine) -> None:
    waiting = submit(engine)
    requeue(engine, claimed(engine), pause_s=3600)
    with transaction(engine) as session:
        assert job_queue.retry_now(session, waiting) == "attempt"
    job = claimed(engine)
    with transaction(engine) as session:
        assert job_queue.retry_now(session, job.id) == ""
    finish(engine, job)
    with transaction(engine) as session:
        outbox.postpone_report(session, job.id, backoff_s=3600, note="")
        assert job_queue.retry_now(session, job.id) == "report"
    assert due(engine) == [job.id]
    with transaction(engine) as session:
        outbox.note_reported(session, job.id, ReportState.REPORTED)
        assert job_queue.retry_now(session, job.id) == ""


FOUND = "12345678-aaaa-4000-8000-000000000001"
NEIGHBOUR = "12345678-bbbb-4000-8000-000000000002"


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        (FOUND, FOUND),
        (FOUND.upper(), FOUND),
        ("12345678-a", FOUND),
        ("12345678", None),  # the beginning of two
        ("12345678-c", None),
        ("%", None),
        ("12345678-a%", None),
        ("1234567_-a", None),
        ("\\", None),
        ("", None),
        ("²", None),  # a digit to str.isdigit, no number to int
        ("9" * 30, None),  # beyond every integer column
        ("9" * 5000, None),  # beyond what Python converts
        ("-1", None),
    ],
)
def test_a_job_is_found_by_an_unambiguous_reference_only(engine: Engine, reference: str, expected: str | None) -> None:
    submit(engine, fulcrum_id=FOUND)
    submit(engine, fulcrum_id=NEIGHBOUR)
    with reading(engine) as session:
        job = queries.find_job(session, reference)
    assert (job.fulcrum_id if job else None) == expected


def test_a_job_is_found_by_our_number(engine: Engine) -> None:
    job_id = submit(engine)
    with reading(engine) as session:
        found = queries.find_job(session, str(job_id))
        assert found is not None
        assert found.id == job_id
        assert queries.find_job(session, "2147483648") is None  # beyond PostgreSQL's integers
        assert queries.find_job(session, str(job_id + 1_000_000_000)) is None  # no beginning of a UUID either


def test_nothing_is_found_by_an_empty_reference_even_when_there_is_one_job_only(engine: Engine) -> None:
    """`smith jobs cancel "$UNSET"` must not cancel anything."""
    submit(engine)
    with reading(engine) as session:
        assert [queries.find_job(session, wild) for wild in ("", "%", "_")] == [None, None, None]


def test_a_ledger_without_jobs_counts_none(engine: Engine) -> None:
    with reading(engine) as session:
        assert set(queries.count_jobs(session).values()) == {0}


def test_a_listing_has_fifty_rows_unless_more_are_asked_for(engine: Engine) -> None:
    with transaction(engine) as session:
        for _ in range(52):
            job_queue.submit(session, new_job())
    with reading(engine) as session:
        assert (len(queries.list_jobs(session)), len(queries.list_jobs(session, limit=60))) == (50, 52)


def test_listing_shows_the_newest_that_match(engine: Engine) -> None:
    service = str(uuid.uuid4())
    done = ended(engine, service_id=service, action="stop")
    waiting = submit(engine, service_id=service, action="start")
    other = submit(engine, action="start")
    with reading(engine) as session:

        def ids(**filters: Any) -> list[int]:
            return [job.id for job in queries.list_jobs(session, **filters)]

        assert ids() == [other, waiting, done]
        assert ids(limit=1) == [other]
        assert ids(statuses=["pending"]) == [other, waiting]
        assert ids(statuses=["processing"]) == []
        assert ids(statuses=["completed"]) == [done]
        assert ids(statuses=["processing", "pending"]) == [other, waiting]
        assert ids(statuses=["completed", "pending"]) == [other, waiting, done]
        assert ids(action="start", service_id=service) == [waiting]
        assert ids(unreported=True) == [done]
        assert queries.count_jobs(session) == {
            "pending": 2,
            "processing": 0,
            "completed": 1,
            "failed": 0,
            "reports_due": 1,
        }


@pytest.mark.parametrize(
    ("filters", "index"),
    [
        ({"statuses": ["pending"]}, "ix_jobs_to_claim"),
        ({"statuses": ["processing"]}, "ix_jobs_one_processing_per_service"),
        ({"unreported": True}, "ix_jobs_to_report"),
    ],
)
def test_a_list_of_open_or_unreported_jobs_is_read_from_a_partial_index(
    sqlite_engine: Engine, filters: dict[str, Any], index: str
) -> None:
    """A list by the primary key reads every ended job when there are fewer matches than the limit."""
    statements: list[tuple[str, Any]] = []

    def record(_connection: Any, _cursor: Any, statement: str, values: Any, *_rest: Any) -> None:
        statements.append((statement, values))

    with reading(sqlite_engine) as session:
        event.listen(sqlite_engine, "before_cursor_execute", record)
        queries.list_jobs(session, **filters)
        event.remove(sqlite_engine, "before_cursor_execute", record)
        ((statement, values),) = [found for found in statements if found[0].startswith("SELECT")]
        plan = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)
        steps = [row[-1] for row in plan]
    assert any(index in step for step in steps), steps
    assert not any(step.startswith("SCAN jobs") and "INDEX" not in step for step in steps), steps


# --- prune --------------------------------------------------------------------------------------------------------


def settle(engine: Engine, *job_ids: int) -> None:
    with transaction(engine) as session:
        for job_id in job_ids:
            outbox.note_reported(session, job_id, ReportState.REPORTED)


def prune(engine: Engine, limit: int = 100, in_s: float = 60) -> tuple[int, list[str]]:
    with transaction(engine) as session:
        return job_queue.prune(session, before=utc_now() + timedelta(seconds=in_s), limit=limit)


def test_a_due_report_is_kept_however_old(engine: Engine) -> None:
    job_id = ended(engine)
    assert prune(engine) == (0, [])
    settle(engine, job_id)
    assert prune(engine) == (1, [])


def test_jobs_that_have_not_ended_or_not_long_ago_are_kept(engine: Engine) -> None:
    job_id = ended(engine)
    settle(engine, job_id)
    submit(engine, age=-999_999)
    submit(engine, age=-999_999)
    claimed(engine)
    assert prune(engine, in_s=-60) == (0, [])
    assert prune(engine) == (1, [])
    with reading(engine) as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 2


def test_pruning_works_in_slices_from_the_oldest_on(engine: Engine) -> None:
    job_ids = [ended(engine) for _ in range(5)]
    settle(engine, *job_ids)
    assert [prune(engine, limit=2)[0] for _ in range(4)] == [2, 2, 1, 0]


def test_pruning_takes_the_runs_along_and_names_them(engine: Engine) -> None:
    submit(engine)
    job = claimed(engine)
    with transaction(engine) as session:
        for ident in ("create-1", "create-2"):
            job_queue.note_started(session, job_queue.lease_of(job), run_ident=ident, playbook="create.yml")
    finish(engine, job)
    settle(engine, job.id)
    submit(engine)
    lease = job_queue.lease_of(claimed(engine))
    with transaction(engine) as session:
        job_queue.note_started(session, lease, run_ident="kept-1", playbook="create.yml")
    count, idents = prune(engine)
    assert (count, sorted(idents)) == (1, ["create-1", "create-2"])
    with reading(engine) as session:
        assert session.scalars(select(Run.ident)).all() == ["kept-1"]


def test_starts_of_agents_are_forgotten_by_the_time_they_were_last_seen(engine: Engine) -> None:
    now = utc_now()
    with transaction(engine) as session:
        for name, seen_at in (("old", now - timedelta(days=9)), ("new", now)):
            session.add(
                Node(
                    id=name,
                    host="h",
                    pid=1,
                    version="1",
                    started_at=now,
                    seen_at=seen_at,
                    concurrency_wanted=1,
                    concurrency=1,
                )
            )
    with transaction(engine) as session:
        assert nodes.prune(session, before=now - timedelta(days=1)) == 1
        assert session.scalars(select(Node.id)).all() == ["new"]
