"""The stored events of a job, such as a requeue or a postponed report, on SQLite and on PostgreSQL.

Only unusual events are stored. The story of a run is a summary of what the run has done.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Engine, func, select, update
from support.databases import LONG_AGO, row, submit
from support.job_steps import BROKEN, claimed, end_backoff, ended, expire_lease, finish, reap, requeue

from executor.database import job_events, job_queue, job_runs, outbox, reaping, reopening, run_queries
from executor.database.engine import read_only_session, transaction
from executor.database.tables.jobs import Job, JobEvent, Run
from executor.database.times import utc_now
from executor.model import JobEventKind, ReportState


def events(engine: Engine, job_id: int) -> Sequence[JobEvent]:
    with read_only_session(engine) as session:
        return run_queries.events_of_job(session, job_id)


def test_a_job_that_is_claimed_ended_and_reported_once_has_no_event(engine: Engine) -> None:
    submit(engine)
    job = claimed(engine)
    finish(engine, job)
    with transaction(engine) as session:
        outbox.set_report_state(session, job.id, ReportState.REPORTED)
    assert events(engine, job.id) == []


def test_each_attempt_that_ends_without_a_result_is_stored_as_an_event(engine: Engine) -> None:
    job_id = submit(engine)
    requeue(engine, claimed(engine))
    job = claimed(engine)
    expire_lease(engine, job_id)
    reap(engine)
    assert [(event.kind, event.attempt, event.count) for event in events(engine, job_id)] == [
        (JobEventKind.REQUEUED, 1, 1),
        (JobEventKind.REAPED, 2, 1),
    ]
    assert str(job.owner) in events(engine, job_id)[1].text


def test_an_event_that_repeats_is_one_row_with_a_count(engine: Engine) -> None:
    job_id = ended(engine)
    for note in ("HTTP 503", "HTTP 503", "HTTP 503", "HTTP 502"):
        end_backoff(engine, job_id)
        with transaction(engine) as session:
            outbox.postpone_report(session, job_id, backoff_s=1, note=note)
    assert [(event.text, event.count) for event in events(engine, job_id)] == [("HTTP 503", 3), ("HTTP 502", 1)]


def test_the_number_and_the_length_of_the_events_of_a_job_are_limited(engine: Engine) -> None:
    job_id = ended(engine)
    with transaction(engine) as session:
        for number in range(job_events.MAX_EVENTS_PER_JOB + 5):
            job_events.add_event(session, job_id, JobEventKind.REPORT_POSTPONED, f"{number}\0 " + "x" * 5000)
    found = events(engine, job_id)
    assert len(found) == job_events.MAX_EVENTS_PER_JOB
    assert found[-1].text.startswith(f"{job_events.MAX_EVENTS_PER_JOB + 4}  x")
    assert len(found[-1].text) == job_events.MAX_TEXT_LENGTH


def test_a_replaced_result_and_a_reopened_job_are_events(engine: Engine) -> None:
    job_id = ended(engine)
    with transaction(engine) as session:
        outbox.replace_result(session, job_id, BROKEN)
        outbox.set_report_state(session, job_id, ReportState.REPORTED)
        fulcrum_id = row(engine, job_id).fulcrum_id
        assert reopening.reopen(session, [fulcrum_id], are_claimed_at_fulcrum=True, now_at_fulcrum=utc_now()) == 1
    kinds = [event.kind for event in events(engine, job_id)]
    assert kinds == [JobEventKind.RESULT_REPLACED, JobEventKind.REOPENED]


def test_a_report_that_is_not_due_cannot_be_changed_and_gets_no_event(engine: Engine) -> None:
    job_id = ended(engine)
    with transaction(engine) as session:
        outbox.set_report_state(session, job_id, ReportState.REPORTED)
        for id_without_due_report in (job_id, job_id + 1):  # reported, and not in the database
            outbox.replace_result(session, id_without_due_report, BROKEN)
            outbox.postpone_report(session, id_without_due_report, backoff_s=1, note="HTTP 503")
    assert events(engine, job_id) == []


def test_jobs_that_a_stopping_agent_releases_have_an_event(engine: Engine) -> None:
    job_id = submit(engine)
    claimed(engine)
    with transaction(engine) as session:
        assert reaping.release_jobs_of_owner(session, "alice") == 1
    assert [event.kind for event in events(engine, job_id)] == [JobEventKind.RELEASED]


def test_events_are_pruned_with_their_job(engine: Engine) -> None:
    job_id = submit(engine)
    requeue(engine, claimed(engine))
    finish(engine, claimed(engine))
    with transaction(engine) as session:
        outbox.set_report_state(session, job_id, ReportState.REPORTED)
        session.execute(update(Job).values(finished_at=LONG_AGO))
        assert job_queue.prune(session, ended_before=utc_now(), limit=10)[0] == 1
        assert session.scalar(select(func.count()).select_from(JobEvent)) == 0


def test_the_story_of_a_run_does_not_change_after_the_end_of_the_run(engine: Engine) -> None:
    submit(engine)
    job = claimed(engine)
    with transaction(engine) as session:
        job_runs.store_run_start(session, job_queue.lease_of(job), run_ident="run-1", playbook="create.yml")
        session.flush()
        job_runs.store_run_story(session, "run-1", {"steps": ["one"]})
    assert _story(engine) == {"steps": ["one"]}
    with transaction(engine) as session:
        end = {"status": "successful", "rc": 0, "reason": "", "folder": "", "upids": []}
        job_runs.store_run_end(session, "run-1", **end, story={"steps": ["one", "two"]})
        job_runs.store_run_story(session, "run-1", {"steps": ["late"]})
    assert _story(engine) == {"steps": ["one", "two"]}


def _story(engine: Engine) -> object:
    with read_only_session(engine) as session:
        return session.scalar(select(Run.story))
