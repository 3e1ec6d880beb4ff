"""`smith doctor` compares the open jobs of FulcrumCore with the rows of the agent's database."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from smith_lab.simulator.control import SimulatorThread, running_simulator
from sqlalchemy import Engine
from support.databases import migrated_sqlite_file, new_job
from support.simulator_world import World

from executor.database import job_queue, outbox
from executor.database.engine import open_engine, transaction
from executor.doctor import open_jobs
from executor.doctor.checks import CheckResult, Status
from executor.doctor.open_jobs import check_open_jobs
from executor.fulcrum import client as client_module
from executor.fulcrum.client import FulcrumClient
from executor.model import JobResult, ReportState
from executor.settings.settings import Settings
from executor.shared.error_codes import ErrorCode

NUMBERS = itertools.count()
#: The results of a job for which a storage had no space, and of a job that another installation has claimed.
NO_SPACE = JobResult(succeeded=False, code=ErrorCode.CAPACITY, detail="full")
CLAIMED_ELSEWHERE_RESULT = JobResult(succeeded=False, code=ErrorCode.JOB_CLAIMED_ELSEWHERE, detail="400")


@dataclass
class Jobs:
    """Jobs of FulcrumCore and rows of the agent's database."""

    world: World
    engine: Engine
    settings: Settings

    def order_job(self, *, claimed: bool = True) -> dict[str, Any]:
        """Order a service; return its create job."""
        number = next(NUMBERS)
        service = self.world.order(self.world.group(f"group-{number}"), name=f"web-{number}")
        return self.world.claimed(service) if claimed else self.world.job_of(service)

    def store_row(self, job: dict[str, Any]) -> int:
        """Add the row of this job to the agent's database; return the row's id."""
        with transaction(self.engine) as session:
            row = new_job(fulcrum_id=job["id"], service_id=job["serviceId"], action="create")
            job_id = job_queue.submit(session, row)
        assert job_id is not None
        return job_id

    def store_ended_row(self, job: dict[str, Any], result: JobResult, state: ReportState = ReportState.DUE) -> int:
        """Add a row of this job that has ended with this result; return the row's id."""
        self.store_row(job)
        with transaction(self.engine) as session:
            row = job_queue.claim(session, "me", lease_s=30)
            assert row is not None
            job_queue.finish(session, job_queue.lease_of(row), result, state)
        return row.id

    def check(self) -> list[CheckResult]:
        fulcrum = FulcrumClient(self.world.sim.url, lambda: self.world.ids.agent_token, read_timeout_s=5)
        return list(check_open_jobs(fulcrum, self.world.ids.agent_id, self.settings))

    def check_with_one_warning(self) -> CheckResult:
        (result,) = self.check()
        assert (result.name, result.status) == ("open jobs", Status.WARNING)
        return result


@pytest.fixture(scope="module")
def sim() -> Iterator[SimulatorThread]:
    with running_simulator() as simulator:
        yield simulator


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return migrated_sqlite_file(tmp_path_factory.mktemp("open-jobs"))


@pytest.fixture
def jobs(sim: SimulatorThread, template: Path, tmp_path: Path) -> Iterator[Jobs]:
    url = f"sqlite:///{tmp_path / 'smith.db'}"
    shutil.copyfile(template, tmp_path / "smith.db")
    engine, world = open_engine(url), World(sim)
    yield Jobs(world, engine, Settings(smith_database_url=url))
    world.close()
    engine.dispose()


def test_processing_and_pending_jobs_without_a_problem_are_counted(jobs: Jobs) -> None:
    jobs.store_row(jobs.order_job())
    jobs.store_ended_row(jobs.order_job(), NO_SPACE)
    jobs.order_job(claimed=False)
    (result,) = jobs.check()
    assert result.status is Status.OK
    assert "no problem with 2 processing jobs and 1 pending job" in result.text


def test_a_processing_job_without_a_row_is_shown(jobs: Jobs) -> None:
    job = jobs.order_job()
    result = jobs.check_with_one_warning()
    assert f"job {job['id']} (create) is Processing in FulcrumCore, but the agent's database has no row" in result.text


def test_without_a_database_each_processing_job_has_no_row(jobs: Jobs, tmp_path: Path) -> None:
    jobs.order_job()
    jobs.settings = Settings(smith_database_url=f"sqlite:///{tmp_path / 'none.db'}")
    assert "has no row" in jobs.check_with_one_warning().text
    assert not (tmp_path / "none.db").exists()


def test_a_database_that_cannot_be_read_skips_the_comparison(jobs: Jobs, tmp_path: Path) -> None:
    jobs.order_job()
    (tmp_path / "smith.db").write_bytes(b"no database")
    (result,) = jobs.check()
    assert result.status is Status.SKIPPED


def test_a_job_that_another_executor_has_claimed_is_shown_with_the_remedy(jobs: Jobs) -> None:
    job_id = jobs.store_ended_row(jobs.order_job(), CLAIMED_ELSEWHERE_RESULT, ReportState.CLAIMED_ELSEWHERE)
    result = jobs.check_with_one_warning()
    assert "another installation with this agent's token has claimed the job: stop that installation" in result.text
    assert result.hints == (f"smith jobs retry {job_id}",)


def test_a_job_whose_report_is_refused_is_shown_with_the_cause(jobs: Jobs) -> None:
    job_id = jobs.store_ended_row(jobs.order_job(), NO_SPACE)
    with transaction(jobs.engine) as session:
        outbox.postpone_report(session, job_id, backoff_s=600, note="HTTP 400: no such action")
    result = jobs.check_with_one_warning()
    assert "FulcrumCore does not accept the job's result: HTTP 400: no such action" in result.text
    assert result.hints == (f"smith jobs retry {job_id}",)


@pytest.mark.parametrize("claimed", [True, False])
@pytest.mark.parametrize("state", [ReportState.REPORTED, ReportState.ENDED_BY_FULCRUM, ReportState.ABANDONED])
def test_a_job_that_has_ended_in_the_database_but_not_in_fulcrumcore_is_shown(
    jobs: Jobs, claimed: bool, state: ReportState
) -> None:
    jobs.store_ended_row(jobs.order_job(claimed=claimed), NO_SPACE, state)
    text = "its status in the database is failed; within 300 s, a running agent either reports the result or executes"
    assert text in jobs.check_with_one_warning().text


def test_the_number_of_requests_and_of_shown_jobs_is_limited(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "PAGE_SIZE", 4)
    monkeypatch.setattr(open_jobs, "MAX_PAGES", 2)
    ordered = [jobs.order_job() for _ in range(10)]
    jobs.world.sim.clear_history()
    results = jobs.check()
    assert len(jobs.world.sim.history(method="GET")) == 3, "two pages of processing jobs, and the offered jobs"
    assert len(results) == open_jobs.MAX_SHOWN_JOBS + 1
    assert results[-1].text.startswith("3 more open jobs are neither processed nor reported")
    for job in ordered:
        jobs.store_row(job)
    (result,) = jobs.check()
    assert "the newest 2 processing jobs were not compared" in result.text
