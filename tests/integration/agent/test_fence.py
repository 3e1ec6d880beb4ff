"""How long the runs of an agent may continue after each renewal of its leases, and the end of a run by its guard.

The guard is a process that watches one run. An agent fences if it limits its runs: it stores the time (the limit) at
which the guards end them. The row of the agent in the table `nodes` says whether it fences.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import pytest
from smith_lab.system import wait_for
from sqlalchemy import Engine, insert, update
from support.agent_parts import BOOT_ID, WITHIN_S, AgentParts
from support.recorded_waits import RecordedWaits

from executor.agent.fence import DEADLINE_SHARE_OF_LEASE
from executor.agent.leases import RENEWALS_PER_LEASE, LeaseKeeper
from executor.agent.parts import build_lease_keeper
from executor.database.engine import read_only_session, transaction
from executor.database.tables.agents import AgentProcessRow
from executor.database.tables.jobs import Job
from executor.database.times import utc_now
from executor.runs.run_until_file import RUN_UNTIL_FILE
from executor.shared.run_until import NO_LIMIT, boottime_s, decode

LONG_AGO = utc_now() - timedelta(days=1)
#: An Ansible task that creates the file `begun`, and waits for the file `go`.
WAIT_TASK = """
- name: Wait
  ansible.builtin.shell: touch {folder}/begun; until [ -e {folder}/go ]; do sleep 0.1; done
"""


@pytest.fixture
def keeper(parts: AgentParts) -> LeaseKeeper:
    """Return a lease keeper whose `maintain_leases` does not wait. No other agent uses the database."""
    add_agent(parts.engine, BOOT_ID)
    parts.state.stopping.set()
    keeper = build_lease_keeper(parts.shared, parts.dispatcher, parts.runner)
    keeper.fence.set_deadline_before_first_run()
    return keeper


def add_agent(engine: Engine, boot_id: str) -> None:
    columns = {"host": "host", "pid": 1, "version": "1", "started_at": LONG_AGO, "draining": False}
    columns |= {"concurrency": 1, "concurrency_wanted": 1}
    with transaction(engine) as session:
        session.execute(insert(AgentProcessRow).values(id=boot_id, seen_at=utc_now(), **columns))


def read_limit_from_file(parts: AgentParts) -> float | None:
    """Return the time at which the guards end the runs, from the file that they read."""
    return decode((parts.folder / "run" / RUN_UNTIL_FILE).read_bytes())


def test_runs_have_a_limit_before_the_first_renewal_and_while_other_agents_use_the_database(
    parts: AgentParts, keeper: LeaseKeeper
) -> None:
    longest_s = keeper.lease_s * DEADLINE_SHARE_OF_LEASE

    assert (read_limit_from_file(parts) or 0) <= boottime_s() + longest_s
    keeper.maintain_leases()
    assert read_limit_from_file(parts) == NO_LIMIT
    add_agent(parts.engine, "other")
    before_s = boottime_s()
    keeper.maintain_leases()
    assert before_s + longest_s - 0.001 <= (read_limit_from_file(parts) or 0) <= boottime_s() + longest_s


def test_the_limit_is_set_before_the_renewal_commits_and_is_removed_after_it(
    parts: AgentParts, keeper: LeaseKeeper
) -> None:
    """Another agent relies on the limit as soon as the database has the renewal."""
    #: For each change of the limit: whether the runs are limited, and whether the database has the renewal.
    limits: list[tuple[bool, bool]] = []

    def note_limit(until_s: float) -> None:
        with read_only_session(parts.engine) as session:
            node = session.get(AgentProcessRow, BOOT_ID)
        assert node is not None
        limits.append((until_s < NO_LIMIT, node.seen_at > LONG_AGO + timedelta(hours=1)))

    def maintain() -> list[tuple[bool, bool]]:
        limits.clear()
        with transaction(parts.engine) as session:
            session.execute(update(AgentProcessRow).where(AgentProcessRow.id == BOOT_ID).values(seen_at=LONG_AGO))
        keeper.maintain_leases()
        return limits

    keeper.fence.set_runs_deadline = note_limit
    assert maintain() == [(False, True)]
    add_agent(parts.engine, "other")
    assert maintain() == [(True, False), (True, True)]
    stop_agent(parts.engine, "other")
    assert maintain() == [(False, True)]


def stop_agent(engine: Engine, boot_id: str) -> None:
    with transaction(engine) as session:
        session.execute(update(AgentProcessRow).where(AgentProcessRow.id == boot_id).values(stopped_at=utc_now()))


def does_row_say_that_agent_fences(engine: Engine) -> bool:
    """Return whether the row of the agent under test (BOOT_ID) says that it fences."""
    with read_only_session(engine) as session:
        return session.get_one(AgentProcessRow, BOOT_ID).fences


@pytest.mark.parametrize(
    ("mode", "fences"), [("auto", [False, True, False]), ("always", [True] * 3), ("never", [False] * 3)]
)
def test_the_row_of_an_agent_says_after_each_renewal_whether_it_fences(
    parts: AgentParts, keeper: LeaseKeeper, mode: str, fences: list[bool]
) -> None:
    keeper.fence.fence_mode = mode
    fences_after_renewals = []
    for change in (lambda: None, lambda: add_agent(parts.engine, "other"), lambda: stop_agent(parts.engine, "other")):
        change()
        keeper.maintain_leases()
        fences_after_renewals.append(does_row_say_that_agent_fences(parts.engine))
    assert fences_after_renewals == fences


def test_an_agent_fences_before_its_row_says_so_and_until_its_row_says_that_it_does_not_fence(
    parts: AgentParts, keeper: LeaseKeeper
) -> None:
    #: For each change of the limit: whether the runs are limited, and whether the row says that the agent fences.
    limits: list[tuple[bool, bool]] = []
    keeper.fence.set_runs_deadline = lambda until_s: limits.append(
        (until_s < NO_LIMIT, does_row_say_that_agent_fences(parts.engine))
    )
    keeper.maintain_leases()
    limits.clear()
    add_agent(parts.engine, "other")
    keeper.maintain_leases()
    assert limits == [(True, False), (True, True)]
    limits.clear()
    stop_agent(parts.engine, "other")
    keeper.maintain_leases()
    assert limits == [(False, False)]


def test_a_job_whose_run_was_ended_by_its_guard_is_requeued_and_its_attempt_does_not_count(parts: AgentParts) -> None:
    parts.write_playbook(WAIT_TASK.format(folder=parts.folder))
    job_id = parts.submit(parts.add_started_service())
    parts.dispatch()
    wait_for((parts.folder / "begun").exists, WITHIN_S, "the run to begin")

    parts.runner.set_runs_deadline(boottime_s())
    parts.wait_until_idle()

    job = parts.job(job_id)
    assert (job.status, job.attempt, job.crashes) == ("pending", 0, 0)
    assert (job.error_message or "").startswith("LEASE_LOST: ")
    parts.runner.set_runs_deadline(NO_LIMIT)
    parts.end_backoff(job_id)
    (parts.folder / "go").touch()
    parts.dispatch()
    parts.wait_until_idle()
    job = parts.job(job_id)
    assert (job.status, job.attempt) == ("completed", 1)


def test_the_limit_is_not_extended_until_the_run_of_a_job_that_lost_its_lease_has_ended(
    parts: AgentParts, keeper: LeaseKeeper
) -> None:
    """This process may have been suspended for longer than its lease. So another agent may already execute the job."""
    parts.write_playbook(WAIT_TASK.format(folder=parts.folder))
    job_id = parts.submit(parts.add_started_service())
    parts.dispatch()
    wait_for((parts.folder / "begun").exists, WITHIN_S, "the run to begin")
    add_agent(parts.engine, "other")
    keeper.maintain_leases()
    limit_before = read_limit_from_file(parts)
    with transaction(parts.engine) as session:
        session.execute(update(Job).where(Job.id == job_id).values(owner="other"))

    keeper.maintain_leases()

    assert read_limit_from_file(parts) == limit_before
    parts.wait_until_idle()
    keeper.maintain_leases()
    assert (read_limit_from_file(parts) or 0) > (limit_before or 0)


@dataclass
class SlowClock:
    """A clock by which the first renewal takes `slow_s` seconds, and the others take no time."""

    slow_s: float
    calls: int = 0

    def __call__(self) -> float:
        self.calls += 1
        return 1000.0 if self.calls == 1 else 1000.0 + self.slow_s


def test_a_slow_renewal_that_finds_another_agent_is_repeated_instead_of_ending_the_runs(
    parts: AgentParts, keeper: LeaseKeeper
) -> None:
    keeper.maintain_leases()
    add_agent(parts.engine, "other")
    keeper.fence.clock = SlowClock(keeper.lease_s)
    limits: list[float] = []
    keeper.fence.set_runs_deadline = limits.append

    keeper.maintain_leases()
    assert limits == []
    assert not does_row_say_that_agent_fences(parts.engine)
    assert not keeper.fence._are_runs_overdue()

    keeper.maintain_leases()
    assert does_row_say_that_agent_fences(parts.engine)
    assert not keeper.fence._are_runs_overdue()
    assert set(limits) == {1000.0 + keeper.lease_s * (1 + DEADLINE_SHARE_OF_LEASE)}


@pytest.mark.parametrize(("share_of_interval", "share_waited"), [(0.0, 1.0), (0.25, 0.75), (1.0, 0.0), (3.0, 0.0)])
def test_the_wait_for_the_next_renewal_is_shorter_by_the_time_that_the_last_one_took(
    parts: AgentParts, keeper: LeaseKeeper, share_of_interval: float, share_waited: float
) -> None:
    interval_s = keeper.lease_s / RENEWALS_PER_LEASE
    keeper.state.stopping = waits = RecordedWaits()
    keeper.fence.clock = SlowClock(share_of_interval * interval_s)

    keeper.maintain_leases()

    assert waits.waits_s[-1] == pytest.approx(share_waited * interval_s)
