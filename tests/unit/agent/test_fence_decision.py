"""When an agent whose leases are not renewed must end its runs."""

from __future__ import annotations

from typing import Any, cast

import pytest

from executor.agent.fence import Fence, must_end_runs
from executor.agent.state import AgentState

LEASE_S = 30.0


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


@pytest.mark.parametrize(("first_renewal", "is_due"), [(None, True), (True, True), (False, False)])
def test_before_the_first_renewal_other_agents_are_assumed(first_renewal: bool | None, is_due: bool) -> None:
    now = [100.0]
    without_dispatcher = cast(Any, None)  # only `check` uses it
    fence = Fence(dispatcher=without_dispatcher, state=AgentState(), lease_s=LEASE_S, mode="auto", clock=lambda: now[0])
    if first_renewal is not None:
        fence.note_renewed(now[0], has_other_agents=first_renewal)
    now[0] += LEASE_S
    assert fence._is_due() is is_due
