"""How claimed jobs start: never while an earlier run of the service lives, never after the agent has begun to stop."""

from __future__ import annotations

import threading

import pytest
from smith_lab.system import wait_for
from support.agent_parts import BOOT_ID, WITHIN_S, AgentParts

from executor.agent.stop_signal import StopSignal
from executor.database import job_queue, reaping
from executor.database.engine import transaction
from executor.model import JobStatus

#: An Ansible task that waits for the file `go`, and ignores TERM meanwhile. So the run lives until the runner kills
#: it, or `go` exists.
WAIT_TASK = """
- name: Wait
  ansible.builtin.shell: "trap '' TERM; echo x >> {folder}/started; while [ ! -e {folder}/go ]; do sleep 0.05; done"
"""


@pytest.fixture(autouse=True)
def waiting_playbook(parts: AgentParts) -> None:
    parts.write_playbook(WAIT_TASK.format(folder=parts.folder))


def start_count(parts: AgentParts) -> int:
    """Return how many runs have started."""
    file = parts.folder / "started"
    return len(file.read_text().splitlines()) if file.exists() else 0


def start_job(parts: AgentParts) -> int:
    """Submit and start a job; return the id of its row."""
    job_id = parts.submit(parts.add_started_service())
    parts.dispatch()
    wait_for(lambda: start_count(parts) == 1, WITHIN_S, "the start of the run")
    return job_id


def test_a_job_does_not_start_while_its_earlier_run_lives(parts: AgentParts) -> None:
    job_id = start_job(parts)
    parts.reap_job(job_id)  # another agent has reaped the job, which is pending again

    parts.dispatch()

    job = parts.job(job_id)
    assert (job.status, job.owner, job.attempt) == (JobStatus.PENDING, None, 1)
    assert [signal.reason for signal in parts.dispatcher.stop_signals().values()] == [StopSignal.LEASE_LOST]
    assert start_count(parts) == 1
    (parts.folder / "go").touch()
    parts.wait_until_idle()
    parts.end_backoff(job_id)
    parts.dispatch()
    parts.wait_until_idle()
    assert parts.job(job_id).status == JobStatus.COMPLETED


def test_a_job_does_not_start_while_a_run_of_another_job_that_lost_its_lease_uses_the_service(
    parts: AgentParts,
) -> None:
    core_job = parts.add_started_service()
    job_id = parts.submit(core_job)
    parts.dispatch()
    wait_for(lambda: start_count(parts) == 1, WITHIN_S, "the start of the run")
    parts.reap_job(job_id)
    with transaction(parts.engine) as session:
        job_queue.cancel_or_request_cancel(session, job_id)
    next_id = parts.submit(core_job | {"id": "99999999-0000-4000-8000-000000000000"})

    parts.dispatch()

    assert parts.job(next_id).status == JobStatus.PENDING
    assert start_count(parts) == 1


def test_a_job_that_is_claimed_while_the_agent_stops_is_requeued(parts: AgentParts) -> None:
    job_id = parts.submit(parts.add_started_service())

    parts.dispatcher.close()
    parts.dispatch()

    assert parts.job(job_id).status == JobStatus.PENDING
    assert parts.dispatcher.running_job_count == 0


def test_a_job_whose_thread_cannot_start_is_requeued_and_runs_later(
    parts: AgentParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = parts.submit(parts.add_started_service())
    (parts.folder / "go").touch()

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)  # as when the operating system allows no more threads
        parts.dispatch()
    assert (parts.job(job_id).status, parts.dispatcher.running_job_count) == (JobStatus.PENDING, 0)

    parts.end_backoff(job_id)
    parts.dispatch()
    parts.wait_until_idle()
    assert (parts.job(job_id).status, parts.job(job_id).attempt) == (JobStatus.COMPLETED, 1)
    assert start_count(parts) == 1


def test_a_stopping_agent_keeps_the_leases_of_jobs_whose_runs_live(parts: AgentParts) -> None:
    job_id = start_job(parts)
    id_without_run = parts.submit(parts.add_started_service(1))
    with transaction(parts.engine) as session:
        assert job_queue.claim(session, BOOT_ID, lease_s=30) is not None
    parts.dispatcher.stop_all_jobs(StopSignal.AGENT_STOPPING)

    with transaction(parts.engine) as session:
        reaping.release_jobs_of_owner(session, BOOT_ID, running_job_ids=parts.dispatcher.stop_signals().keys())

    assert (parts.job(job_id).status, parts.job(job_id).owner) == (JobStatus.PROCESSING, BOOT_ID)
    assert parts.job(id_without_run).status == JobStatus.PENDING
