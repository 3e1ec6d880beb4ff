"""What the worker does when the runner itself fails: the job is attempted again."""

from __future__ import annotations

import shutil

from sqlalchemy import select
from support.agent_parts import AgentParts

from executor.agent.retry import MAX_ATTEMPTS_AFTER_KILL
from executor.database.engine import reading
from executor.database.tables import Run
from executor.model import JobStatus, ReportState
from executor.shared.error_codes import ErrorCode

NOTHING = """
- name: Print
  ansible.builtin.debug:
    msg: "nothing to do"
"""


def runs(parts: AgentParts) -> list[Run]:
    with reading(parts.engine) as session:
        return list(session.scalars(select(Run).order_by(Run.id)))


def attempt(parts: AgentParts, job_id: int) -> None:
    parts.end_backoff(job_id)
    parts.dispatch()
    parts.wait_until_idle()


def test_a_job_whose_runner_fails_is_attempted_again_and_completes(parts: AgentParts) -> None:
    parts.write_playbook(NOTHING)
    job_id = parts.submit(parts.add_started_service())
    parts.runner.end_earlier_runs()
    run_folder = parts.folder / "run"
    shutil.rmtree(run_folder)

    attempt(parts, job_id)

    (run,) = runs(parts)
    reason = f"the run failed: No such file or directory (run {run.ident})"
    assert (run.status, run.rc, run.reason) == ("failed", None, reason)
    assert run.ended_at is not None
    job = parts.job(job_id)
    assert (job.status, job.attempt, job.error_message) == (JobStatus.PENDING, 1, f"PLAYBOOK_FAILED: {reason}")

    run_folder.mkdir(mode=0o700)
    attempt(parts, job_id)

    job = parts.job(job_id)
    assert (job.status, job.attempt, job.report_state) == (JobStatus.COMPLETED, 2, ReportState.DUE)
    assert [run.status for run in runs(parts)] == ["failed", "successful"]


def test_a_job_whose_runner_always_fails_ends_after_a_few_attempts(parts: AgentParts) -> None:
    parts.write_playbook(NOTHING)
    job_id = parts.submit(parts.add_started_service())
    parts.runner.end_earlier_runs()
    shutil.rmtree(parts.folder / "run")

    for _ in range(MAX_ATTEMPTS_AFTER_KILL):
        attempt(parts, job_id)

    job = parts.job(job_id)
    assert (job.status, job.attempt, job.report_state) == (JobStatus.FAILED, MAX_ATTEMPTS_AFTER_KILL, ReportState.DUE)
    assert job.error_code == ErrorCode.PLAYBOOK_FAILED
    assert len(runs(parts)) == MAX_ATTEMPTS_AFTER_KILL
