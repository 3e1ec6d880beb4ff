"""The reporter in random orders of reports, outages and lost answers, which Hypothesis chooses."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from smith_lab.simulator.control import SimulatorThread
from support.outbox_world import FAILED, INVALID_MAC, Json, Outbox, made
from support.simulator_world import World

from executor.agent.reporter import (
    MAX_FAILED_COMPLETIONS,
)
from executor.database.engine import open_engine
from executor.model import JobStatus


class Reports(RuleBasedStateMachine):
    """At any time, a job ends, FulcrumCore fails, loses a response or times a job out, or the reporter is restarted."""

    sim: SimulatorThread
    folder: Path
    migrated_file: Path
    file_numbers = itertools.count()

    jobs = Bundle("jobs")

    @initialize()
    def set_up_world(self) -> None:
        file = self.folder / f"{next(self.file_numbers)}.db"
        shutil.copyfile(self.migrated_file, file)
        self.world = World(self.sim)
        self.outbox = Outbox(self.world, open_engine(f"sqlite:///{file}"))
        self.timed_out: set[str] = set()
        self.ended_jobs: dict[str, int] = {}

    @rule(target=jobs)
    def order_service(self) -> Json:
        return self.outbox.ordered()

    @rule(job=consumes(jobs), result=st.sampled_from(["made", "failed", "invalid"]))
    def end_job(self, job: Json, result: str) -> None:
        results = {"made": made(), "failed": FAILED, "invalid": made(**INVALID_MAC)}
        self.ended_jobs[job["id"]] = self.outbox.ended(job, results[result])

    @rule(job=jobs)
    def time_out(self, job: Json) -> None:
        if job["id"] not in self.timed_out:
            self.timed_out.add(job["id"])
            self.sim.expire_job(job["id"])

    @rule(
        kind=st.sampled_from(["drop_after", "drop_before", "truncate", "html", "empty"]),
        path=st.sampled_from([r"/complete$", r"/fail$", r"/jobs/[^/]+$"]),
        times=st.integers(1, 3),
    )
    def add_fault(self, kind: str, path: str, times: int) -> None:
        self.sim.add_fault(kind, path=path, times=times)

    @rule(status=st.sampled_from([400, 403, 500, 503]), times=st.integers(1, 4))
    def refuse_reports(self, status: int, times: int) -> None:
        self.sim.add_fault("status", status=status, method="POST", path=r"/(complete|fail)$", times=times)

    @rule()
    def send_due_reports(self) -> None:
        self.outbox.turn()

    @rule()
    def restart_reporter(self) -> None:
        self.outbox.restart()

    @invariant()
    def no_job_has_two_accepted_outcomes(self) -> None:
        for job_id in getattr(self, "ended_jobs", {}):
            accepted = {what for what, status in self.outbox.reports({"id": job_id}) if status == 204}
            assert len(accepted) <= 1

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        self.sim.clear_faults()
        self.outbox.turn(MAX_FAILED_COMPLETIONS + 2)
        for job_id, number in self.ended_jobs.items():
            row, core = self.outbox.row(number), self.outbox.job_at_core({"id": job_id})
            assert row.report_state in ("reported", "overtaken")  # FulcrumCore has every one of these jobs
            if row.report_state == "reported":
                assert core["status"].lower() == row.status
                assert row.status == JobStatus.COMPLETED or core["errorMessage"] == row.error_message
            else:
                assert row.report_note
        self.world.close()
        self.outbox.engine.dispose()


@pytest.fixture(scope="module", autouse=True)
def _set_up_the_state_machine(
    sim: SimulatorThread, migrated_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    Reports.sim, Reports.migrated_file, Reports.folder = sim, migrated_file, tmp_path_factory.mktemp("machine")


class TestReports(Reports.TestCase):  # type: ignore[name-defined,misc]
    """The test of Hypothesis, with so few examples that it takes some seconds."""

    settings = settings(
        max_examples=12,
        stateful_step_count=25,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
