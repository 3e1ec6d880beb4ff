"""When a job that FulcrumCore refuses with 403 counts as gone."""

from __future__ import annotations

import pytest

from executor.agent.refusals import (
    MAX_REFUSAL_AGE_S,
    MIN_INTERVAL_S,
    MIN_REFUSAL_DURATION_S,
    MIN_REFUSALS,
    Refusals,
    add_refusal,
    is_gone,
    refusals_after_check,
)


def is_gone_after_refusals_at(*times_s: float) -> bool:
    refusals = None
    for now in times_s:
        refusals = add_refusal(refusals, now)
    return refusals is not None and is_gone(refusals)


@pytest.mark.parametrize(
    ("times_s", "expected"),
    [
        ([0.0], False),
        ([0, 1, 2, 3, 4], False),
        ([0, 40, 80], False),
        ([0, 40, 80, 119], False),
        ([0, 40, 80, 120], True),
        ([0, 0.5, 119, 119.5, 240], False),
        ([0, 120, 240, 360], True),
        ([0, 40, 80, 80 + MAX_REFUSAL_AGE_S + 1], False),
    ],
)
def test_a_job_counts_as_gone_after_several_refusals_over_at_least_two_minutes(
    times_s: list[float], expected: bool
) -> None:
    assert is_gone_after_refusals_at(*times_s) is expected


def test_refusals_in_quick_succession_count_as_one() -> None:
    times_s = [number * MIN_INTERVAL_S * 0.9 for number in range(MIN_REFUSALS)]
    assert not is_gone_after_refusals_at(*times_s)
    assert not is_gone_after_refusals_at(*[MIN_REFUSAL_DURATION_S + number for number in range(100)])


def test_a_refusal_exactly_at_the_limits_of_age_and_interval_is_counted() -> None:
    refusals = Refusals(count=2, first_at=5_000.0, last_at=6_000.0)
    at_least_s, at_most_s = 6_000.0 + MIN_INTERVAL_S, 6_000.0 + MAX_REFUSAL_AGE_S
    for now in (at_least_s, at_most_s):
        assert add_refusal(refusals, now) == Refusals(count=3, first_at=5_000.0, last_at=now)
    too_late = at_most_s + 1
    assert add_refusal(refusals, too_late) == Refusals(count=1, first_at=too_late, last_at=too_late)


REFUSALS_OF_OTHER_JOB = Refusals(count=3, first_at=5_000.0, last_at=6_000.0)
REFUSALS_OF_OWN_JOB = Refusals(count=1, first_at=5_500.0, last_at=5_500.0)
NOW = 6_000.0 + MAX_REFUSAL_AGE_S / 2


def refusals_after_one_more(
    now: float = NOW, *, is_agent_accepted: bool = True, is_object_readable: bool = False
) -> dict[str, Refusals]:
    """Return the refusals of both jobs after a refusal of the job "own".

    After a refusal, the agent checks whether FulcrumCore accepts its token and whether it can read the job.
    """
    return refusals_after_check(
        {"other": REFUSALS_OF_OTHER_JOB, "own": REFUSALS_OF_OWN_JOB},
        "own",
        now,
        is_agent_accepted=is_agent_accepted,
        is_object_readable=is_object_readable,
    )


def test_a_refused_job_gets_one_more_refusal_and_those_of_other_jobs_stay() -> None:
    assert refusals_after_one_more() == {
        "other": REFUSALS_OF_OTHER_JOB,
        "own": Refusals(count=2, first_at=5_500.0, last_at=NOW),
    }


def test_the_refusals_of_a_job_that_can_be_read_are_deleted() -> None:
    assert refusals_after_one_more(is_object_readable=True) == {"other": REFUSALS_OF_OTHER_JOB}


@pytest.mark.parametrize("is_object_readable", [True, False])
def test_while_the_agents_token_is_refused_all_refusals_are_deleted(is_object_readable: bool) -> None:
    assert refusals_after_one_more(is_agent_accepted=False, is_object_readable=is_object_readable) == {}


def test_refusals_of_other_jobs_are_deleted_after_their_maximum_age() -> None:
    assert refusals_after_one_more(6_000.0 + MAX_REFUSAL_AGE_S, is_object_readable=True) == {
        "other": REFUSALS_OF_OTHER_JOB
    }
    assert refusals_after_one_more(6_001.0 + MAX_REFUSAL_AGE_S, is_object_readable=True) == {}
