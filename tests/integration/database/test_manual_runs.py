"""Runs that operators start never overlap with jobs of the same service: one of the two waits or is refused."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, text, update
from support.databases import submit
from support.job_steps import claim, claimed, finish

from executor.agent.pruner import Pruner
from executor.database import busy_services, erasure, job_queue, manual_runs, run_queries
from executor.database.engine import read_only_session, transaction
from executor.database.manual_runs import MAX_LEASE_S, NewManualRun
from executor.database.tables.jobs import Job, ManualRun
from executor.database.times import db_now, utc_now
from executor.errors import DatabaseError, StatementRefused
from executor.model import RunStatus
from executor.settings.settings import Settings

SERVICE = "aaaa1111-0000-4000-8000-000000000000"
LEASE_S = 60.0


NEW_RUN = NewManualRun(ident="start-1", service_id=SERVICE, vmid=100, action="start", who="ops", host="host-1", pid=1)


def start(engine: Engine, ident: str = "start-1", service_id: str = SERVICE) -> Job | ManualRun | None:
    """Start a manual run. Return None, or the job or run of the service that prevents the start."""
    new_run = replace(NEW_RUN, ident=ident, service_id=service_id)
    with transaction(engine) as session:
        return manual_runs.start(session, new_run, lease_s=LEASE_S)


def end(engine: Engine, ident: str = "start-1") -> None:
    with transaction(engine) as session:
        manual_runs.finish(session, ident, status=RunStatus.SUCCESSFUL, reason="", upids=["UPID:1"], output="ok")


def set_lease(engine: Engine, offset_s: float) -> None:
    """Let the leases of all runs end this number of seconds from now."""
    with transaction(engine) as session:
        session.execute(update(ManualRun).values(lease_until=db_now(offset_s)))


def test_a_job_waits_until_the_manual_run_of_its_service_has_ended(engine: Engine) -> None:
    job_id, other = submit(engine, service_id=SERVICE), submit(engine)
    assert start(engine) is None
    assert (claimed(engine).id, claim(engine)) == (other, None)
    end(engine)
    assert claimed(engine).id == job_id


def test_a_manual_run_is_refused_while_a_job_of_its_service_is_processing(engine: Engine) -> None:
    job_id = submit(engine, service_id=SERVICE)
    job = claimed(engine)
    obstacle = start(engine)
    assert isinstance(obstacle, Job)
    assert obstacle.id == job_id
    finish(engine, job)
    assert start(engine) is None


def test_a_second_run_of_the_same_service_is_refused_and_a_run_of_another_service_is_not(engine: Engine) -> None:
    assert start(engine) is None
    obstacle = start(engine, "stop-2")
    assert isinstance(obstacle, ManualRun)
    assert obstacle.ident == "start-1"
    assert start(engine, "start-3", str(uuid.uuid4())) is None
    end(engine)
    assert start(engine, "stop-2") is None


@pytest.mark.parametrize("lease_s", [-1, MAX_LEASE_S + 60])
def test_a_run_whose_lease_has_expired_blocks_neither_a_job_nor_a_run(engine: Engine, lease_s: float) -> None:
    """The second lease ends later than a lease can: it was stored before the database's clock was set back."""
    job_id = submit(engine, service_id=SERVICE)
    assert start(engine) is None
    set_lease(engine, lease_s)
    assert start(engine, "start-2") is None
    with read_only_session(engine) as session:
        expired_run = run_queries.find_manual_run(session, "start-1")
        assert expired_run is not None
        assert (expired_run.status, expired_run.reason) == ("failed", manual_runs.REASON_END_NOT_STORED)
    set_lease(engine, lease_s)
    assert claimed(engine).id == job_id


def test_a_lease_is_renewed_until_it_has_expired_or_the_run_has_ended(engine: Engine) -> None:
    def renew() -> bool:
        with transaction(engine) as session:
            return manual_runs.renew(session, "start-1", lease_s=LEASE_S)

    assert start(engine) is None
    assert renew()
    set_lease(engine, -1)
    assert not renew()
    set_lease(engine, 10)
    assert renew()
    end(engine)
    assert not renew()


def test_the_output_is_stored_with_a_renewal_and_at_the_end(engine: Engine) -> None:
    def output() -> str | None:
        with read_only_session(engine) as session:
            run = run_queries.find_manual_run(session, "start-1")
            assert run is not None
            return run.output

    assert start(engine) is None
    assert output() is None
    for new_output, stored_output in (("so far", "so far"), (None, "so far")):
        with transaction(engine) as session:
            assert manual_runs.renew(session, "start-1", lease_s=LEASE_S, output=new_output)
        assert output() == stored_output
    end(engine)
    assert output() == "ok"


def test_the_end_of_a_run_that_another_run_has_replaced_changes_nothing(engine: Engine) -> None:
    assert start(engine) is None
    set_lease(engine, -1)
    assert start(engine, "start-2") is None
    end(engine)
    with read_only_session(engine) as session:
        assert [(run.ident, run.status) for run in run_queries.newest_manual_runs(session, 10)] == [
            ("start-2", None),
            ("start-1", "failed"),
        ]


def test_a_service_with_a_run_in_progress_is_listed_as_busy_so_that_a_drift_check_skips_it(engine: Engine) -> None:
    def busy() -> tuple[bool, bool]:
        with read_only_session(engine) as session:
            return SERVICE in busy_services.find_busy_service_ids(
                session
            ), SERVICE in busy_services.find_busy_service_ids(session, SERVICE)

    assert start(engine) is None
    assert busy() == (True, True)
    end(engine)
    assert busy() == (False, False)


def test_of_a_claim_and_a_start_at_the_same_time_exactly_one_succeeds(engine: Engine) -> None:
    services = [str(uuid.uuid4()) for _ in range(20)]
    for service_id in services:
        submit(engine, service_id=service_id)
    barrier = threading.Barrier(2, timeout=60)

    def claim_all() -> set[str]:
        barrier.wait()
        jobs = [claim(engine) for _ in services]
        return {str(job.service_id) for job in jobs if job is not None}

    def start_all() -> set[str]:
        barrier.wait()
        return {service_id for service_id in reversed(services) if start(engine, service_id, service_id) is None}

    with ThreadPoolExecutor(2) as pool:
        claims, starts = pool.submit(claim_all), pool.submit(start_all)
        assert claims.result() & starts.result() == set()
        assert claims.result() | starts.result() == set(services)


def test_on_postgresql_a_start_waits_for_a_claim_that_is_not_committed(postgres_engine: Engine) -> None:
    """Without the wait, both would succeed: neither transaction can see what the other one has not committed."""
    submit(postgres_engine, service_id=SERVICE)
    with transaction(postgres_engine) as claiming:
        assert job_queue.claim(claiming, "alice", lease_s=LEASE_S) is not None
        with pytest.raises(DatabaseError, match=r"(?i)lock timeout"):
            start_within(postgres_engine, "200ms")
    assert isinstance(start(postgres_engine), Job)


def start_within(engine: Engine, lock_timeout: str) -> None:
    with transaction(engine) as session:
        session.execute(text(f"SET LOCAL lock_timeout = '{lock_timeout}'"))
        manual_runs.start(session, NEW_RUN, lease_s=LEASE_S)


def test_the_database_refuses_a_second_run_of_a_service_before_the_first_one_has_ended(engine: Engine) -> None:
    assert start(engine) is None
    values = {"service_id": SERVICE, "action": "stop", "who": "", "host": "", "pid": 1}
    second = ManualRun(ident="stop-2", started_at=utc_now(), lease_until=utc_now(), **values)
    with pytest.raises(StatementRefused, match=r"(?i)unique"), transaction(engine) as session:
        session.add(second)


def test_old_runs_are_pruned_and_a_run_in_progress_is_kept(engine: Engine, tmp_path: Path) -> None:
    assert start(engine) is None
    end(engine)
    assert start(engine, "start-2") is None
    assert start(engine, "start-3", str(uuid.uuid4())) is None
    end(engine, "start-3")
    with transaction(engine) as session:
        long_ago = utc_now() - timedelta(days=400)
        is_old = ManualRun.ident != "start-3"
        session.execute(update(ManualRun).where(is_old).values(started_at=long_ago))
    settings = Settings(smith_data_dir=tmp_path, smith_run_dir=tmp_path / "run")
    Pruner(engine=engine, settings=settings).prune()
    with read_only_session(engine) as session:
        assert {run.ident for run in run_queries.newest_manual_runs(session, 10)} == {"start-2", "start-3"}


def test_the_runs_of_a_service_are_erased_after_they_have_ended(engine: Engine) -> None:
    assert start(engine) is None
    with transaction(engine) as session:
        data = erasure.find_stored_data(session, SERVICE)
        assert (data.manual_run_count, data.is_empty) == (1, False)
        assert erasure.why_service_has_not_ended(session, data) == "a run that an operator started is in progress"
    end(engine)
    with transaction(engine) as session:
        data = erasure.find_stored_data(session, SERVICE)
        assert erasure.why_service_has_not_ended(session, data) == ""
        erasure.erase(session, data, who="ops", reason="")
        assert run_queries.newest_manual_runs(session, 10) == []
