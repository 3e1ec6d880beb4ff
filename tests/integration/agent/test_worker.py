"""What the worker stores of a run, and that a job gets another attempt when the runner itself or the database fails.

The story of a run is a summary of what the run has done: its Ansible tasks and their outcomes.
"""

from __future__ import annotations

import shutil
from typing import Any

from smith_lab.system import wait_for
from sqlalchemy import event, select
from sqlalchemy.exc import OperationalError
from support.agent_parts import WITHIN_S, AgentParts

from executor.agent.parts import build_lease_keeper
from executor.agent.retry import MAX_ATTEMPTS_IF_EFFECT_UNKNOWN
from executor.database import run_queries
from executor.database.engine import read_only_session
from executor.database.tables.jobs import Run
from executor.model import JobStatus, ReportState
from executor.shared.error_codes import ErrorCode

PRINT_TASK = """
- name: Print
  ansible.builtin.debug:
    msg: "nothing to do"
"""


def list_runs(parts: AgentParts) -> list[Run]:
    with read_only_session(parts.engine) as session:
        return list(session.scalars(select(Run).order_by(Run.id)))


def run_next_attempt(parts: AgentParts, job_id: int) -> None:
    parts.end_backoff(job_id)
    parts.dispatch()
    parts.wait_until_idle()


def test_a_job_whose_runner_fails_is_attempted_again_and_completes(parts: AgentParts) -> None:
    parts.write_playbook(PRINT_TASK)
    job_id = parts.submit(parts.add_started_service())
    parts.runner.end_earlier_runs()
    run_folder = parts.folder / "run"
    shutil.rmtree(run_folder)

    run_next_attempt(parts, job_id)

    (run,) = list_runs(parts)
    reason = f"the playbook could not be run: No such file or directory (run {run.ident})"
    assert (run.status, run.rc, run.reason) == ("failed", None, reason)
    assert run.ended_at is not None
    job = parts.job(job_id)
    assert (job.status, job.attempt, job.error_message) == (JobStatus.PENDING, 1, f"PLAYBOOK_FAILED: {reason}")

    run_folder.mkdir(mode=0o700)
    run_next_attempt(parts, job_id)

    job = parts.job(job_id)
    assert (job.status, job.attempt, job.report_state) == (JobStatus.COMPLETED, 2, ReportState.DUE)
    assert [run.status for run in list_runs(parts)] == ["failed", "successful"]


def test_the_story_of_a_run_is_stored_with_the_end_of_the_run(parts: AgentParts) -> None:
    parts.write_playbook(PRINT_TASK)
    job_id = parts.submit(parts.add_started_service())
    parts.runner.end_earlier_runs()
    run_next_attempt(parts, job_id)
    with read_only_session(parts.engine) as session:
        (run,) = run_queries.runs_with_stories(session, [job_id])
    assert run.story is not None
    tasks = [(row["task"], row["outcome"]) for row in run.story["tasks"]]
    assert tasks == [("Print", "ok"), ("Publish", "ok")]


def test_the_lease_keeper_stores_what_a_current_run_has_done(parts: AgentParts) -> None:
    go_file = parts.folder / "go-on"
    parts.write_playbook(f"""
- name: Wait for the test
  ansible.builtin.wait_for:
    path: {go_file}
""")
    job_id = parts.submit(parts.add_started_service())
    parts.runner.end_earlier_runs()
    keeper = build_lease_keeper(parts.shared, parts.dispatcher, parts.runner)
    parts.state.stopping.set()  # so that the lease keeper does not wait for its next renewal
    parts.dispatch()

    def stored_tasks() -> list[str]:
        keeper.maintain_leases()
        with read_only_session(parts.engine) as session:
            stories = [run.story or {} for run in run_queries.runs_with_stories(session, [job_id])]
        return [row["task"] for story in stories for row in story.get("tasks", ())]

    wait_for(lambda: stored_tasks() == ["Wait for the test"], WITHIN_S, "the story of the current run")
    go_file.touch()
    parts.wait_until_idle()
    assert parts.job(job_id).status == JobStatus.COMPLETED


def test_a_job_whose_runner_always_fails_ends_after_a_few_attempts(parts: AgentParts) -> None:
    parts.write_playbook(PRINT_TASK)
    job_id = parts.submit(parts.add_started_service())
    parts.runner.end_earlier_runs()
    shutil.rmtree(parts.folder / "run")

    for _ in range(MAX_ATTEMPTS_IF_EFFECT_UNKNOWN):
        run_next_attempt(parts, job_id)

    job = parts.job(job_id)
    assert (job.status, job.attempt, job.report_state) == (
        JobStatus.FAILED,
        MAX_ATTEMPTS_IF_EFFECT_UNKNOWN,
        ReportState.DUE,
    )
    assert job.error_code == ErrorCode.PLAYBOOK_FAILED
    assert len(list_runs(parts)) == MAX_ATTEMPTS_IF_EFFECT_UNKNOWN


def test_a_job_whose_run_the_database_cannot_store_is_requeued_and_the_attempt_does_not_count(
    parts: AgentParts,
) -> None:
    """For example, another process holds a lock that is needed to store the run."""
    parts.write_playbook(PRINT_TASK)
    job_id = parts.submit(parts.add_started_service())
    parts.runner.end_earlier_runs()

    def refuse(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.startswith("INSERT INTO runs"):
            raise OperationalError(statement, None, Exception("canceling statement due to lock timeout"))

    event.listen(parts.engine, "before_cursor_execute", refuse)
    parts.dispatch()
    parts.wait_until_idle()
    event.remove(parts.engine, "before_cursor_execute", refuse)

    job = parts.job(job_id)
    assert (job.status, job.attempt, job.crashes) == (JobStatus.PENDING, 0, 0)
    assert "lock timeout" in (job.operator_detail or "")
    assert "lock timeout" not in (job.error_message or "")
    run_next_attempt(parts, job_id)
    assert (parts.job(job_id).status, parts.job(job_id).attempt) == (JobStatus.COMPLETED, 1)
