"""When an agent may take the jobs of another agent that does not renew its leases."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from executor.agent.reaper import MAX_LEASE_S, LeaseObservation, ReapDecision, decide_reaping, observe_leases

LEASE_S = 30.0
EARLIER, LATER = (datetime(2026, 11, 27, 8, minute, tzinfo=UTC) for minute in (0, 1))
STATE = (1, 7, EARLIER)


def unchanged_s(observation: LeaseObservation, state: Any = STATE) -> float:
    return observation.read_at - observation.unchanged_since[state]


def observation_after(*reads: tuple[float, Any], observation: LeaseObservation | None = None) -> LeaseObservation:
    """Return the observation after reads of one lease: the point in time and the state of each."""
    result = observation or LeaseObservation()
    for now, state in reads:
        result = observe_leases(result, [state], now, lease_s=LEASE_S)
    return result


def test_an_observation_begins_with_the_first_read_of_an_agent_process() -> None:
    assert unchanged_s(observation_after((1000.0, STATE))) == 0
    assert unchanged_s(observation_after((1000.0, STATE), (1005.0, STATE), (1010.0, STATE))) == 10


@pytest.mark.parametrize("changed_state", [(1, 7, LATER), (1, 8, EARLIER), (2, 7, EARLIER)])
def test_an_observation_begins_anew_with_a_renewal_and_with_a_claim(changed_state: Any) -> None:
    assert (
        unchanged_s(
            observation_after((0.0, STATE), (5.0, STATE), (10.0, changed_state), (15.0, changed_state)), changed_state
        )
        == 5
    )


def test_a_lease_that_was_missing_in_one_read_is_observed_anew() -> None:
    before = observation_after((0.0, STATE), (5.0, STATE))
    without = observe_leases(before, [], 10.0, lease_s=LEASE_S)
    assert unchanged_s(observation_after((15.0, STATE), (20.0, STATE), observation=without)) == 5


@pytest.mark.parametrize(("gap_s", "expected_s"), [(15.0, 20.0), (15.1, 0.0)])
def test_an_observation_begins_anew_after_a_gap_of_more_than_half_a_lease(gap_s: float, expected_s: float) -> None:
    assert unchanged_s(observation_after((0.0, STATE), (5.0, STATE), (5.0 + gap_s, STATE))) == pytest.approx(expected_s)


@pytest.mark.parametrize(
    ("unrenewed_s", "facts", "decision"),
    [
        (29.9, {}, ReapDecision.KEEP),
        (30.0, {}, ReapDecision.REAP),
        (30.0, {"is_expired": False}, ReapDecision.KEEP),
        (MAX_LEASE_S, {"is_expired": False}, ReapDecision.REAP),
        (3000.0, {"is_owner_fencing": False}, ReapDecision.WAIT_FOR_DEADLINE),
        (30.0, {"is_owner_fencing": False, "is_past_deadline": True}, ReapDecision.REAP),
        (29.9, {"is_owner_fencing": False, "is_past_deadline": True}, ReapDecision.KEEP),
        (30.0, {"is_owner_fencing": False, "has_stored_run": False}, ReapDecision.REAP),
        (29.9, {"is_owner_fencing": False, "has_stored_run": False}, ReapDecision.KEEP),
    ],
)
def test_a_job_is_reaped_when_its_owner_has_certainly_ended_the_run(
    unrenewed_s: float, facts: dict[str, bool], decision: ReapDecision
) -> None:
    all_facts = {"is_expired": True, "is_owner_fencing": True, "is_past_deadline": False} | facts
    assert decide_reaping(unrenewed_s, lease_s=LEASE_S, **all_facts) is decision
