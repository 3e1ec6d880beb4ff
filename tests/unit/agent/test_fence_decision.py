"""When an agent whose leases are not renewed must end its runs."""

from __future__ import annotations

from typing import Any, cast

import pytest

from executor.agent.fence import Fence, must_end_runs, runs_deadline_s
from executor.agent.state import AgentState
from executor.shared.run_until import NO_LIMIT

LEASE_S = 30.0


def fence_at(now: list[float], *, deadlines_s: list[float], mode: str = "auto") -> Fence:
    """Return a fence whose clock shows `now[0]`, and which adds each new deadline of the runs to `deadlines_s`."""
    return Fence(
        dispatcher=cast(Any, None),  # only `check` uses it
        state=AgentState(),
        lease_s=LEASE_S,
        fence_mode=mode,
        set_runs_deadline=deadlines_s.append,
        clock=lambda: now[0],
    )


@pytest.mark.parametrize(
    ("mode", "since_renewal_s", "has_other_agents", "must_end"),
    [
        ("auto", 19.9, True, False),
        ("auto", 20.0, True, True),
        ("auto", 3600.0, False, False),
        ("always", 19.9, False, False),
        ("always", 20.0, False, True),
        ("never", 3600.0, True, False),
    ],
)
def test_runs_end_after_two_thirds_of_a_lease_if_another_agent_may_take_the_jobs(
    mode: str, since_renewal_s: float, has_other_agents: bool, must_end: bool
) -> None:
    assert must_end_runs(mode, since_renewal_s, lease_s=LEASE_S, has_other_agents=has_other_agents) is must_end


@pytest.mark.parametrize(("has_other_agents", "is_due"), [(None, True), (True, True), (False, False)])
def test_before_the_first_renewal_other_agents_are_assumed(has_other_agents: bool | None, is_due: bool) -> None:
    now = [100.0]
    fence = fence_at(now, deadlines_s=[])
    if has_other_agents is not None:  # None: no renewal yet
        fence.record_renewal(now[0], has_other_agents=has_other_agents)
    now[0] += LEASE_S
    assert fence._are_runs_overdue() is is_due


@pytest.mark.parametrize(
    ("mode", "has_other_agents", "deadline_s"),
    [
        ("auto", True, 122.5),
        ("auto", False, NO_LIMIT),
        ("always", True, 122.5),
        ("always", False, 122.5),
        ("never", True, NO_LIMIT),
        ("never", False, NO_LIMIT),
    ],
)
def test_guards_end_the_runs_a_little_later_than_the_agent_in_the_same_cases(
    mode: str, has_other_agents: bool, deadline_s: float
) -> None:
    facts: dict[str, Any] = {"lease_s": LEASE_S, "has_other_agents": has_other_agents}

    assert runs_deadline_s(mode, 100.0, **facts) == deadline_s
    assert must_end_runs(mode, 22.5, **facts) is (deadline_s != NO_LIMIT)


def test_the_deadline_of_the_runs_counts_from_the_beginning_of_the_last_renewal() -> None:
    now, deadlines_s = [100.0], list[float]()
    fence = fence_at(now, deadlines_s=deadlines_s)

    fence.set_deadline_before_first_run()
    now[0] = 107.0
    fence.record_renewal(105.0, has_other_agents=True)
    fence.record_renewal(110.0, has_other_agents=False)

    assert deadlines_s == [122.5, 127.5, NO_LIMIT]


def test_runs_without_a_deadline_get_one_as_soon_as_another_agent_is_found() -> None:
    now, deadlines_s = [100.0], list[float]()
    fence = fence_at(now, deadlines_s=deadlines_s)
    fence.record_renewal(100.0, has_other_agents=False)

    fence.try_set_runs_deadline(105.0)
    fence.record_renewal(105.0, has_other_agents=True)
    fence.try_set_runs_deadline(110.0)  # not yet committed, so the runs get no more time

    assert deadlines_s == [NO_LIMIT, 127.5, 127.5]


def test_a_renewal_that_took_long_must_be_repeated_if_it_found_the_first_other_agent() -> None:
    now, deadlines_s = [100.0], list[float]()
    fence = fence_at(now, deadlines_s=deadlines_s)
    fence.record_renewal(100.0, has_other_agents=False)

    now[0] = 110.1
    assert not fence.try_set_runs_deadline(100.0)
    assert deadlines_s == [NO_LIMIT]
    now[0] = 110.0
    assert fence.try_set_runs_deadline(100.0)
    now[0] = 119.0
    assert fence.try_set_runs_deadline(100.0)  # the runs already have a deadline

    assert deadlines_s == [NO_LIMIT, 122.5]
