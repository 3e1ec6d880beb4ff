"""When a job that FulcrumCore refuses with 403 counts as gone."""

from __future__ import annotations

import pytest

from executor.agent.refused_jobs import MAX_AGE_S, MIN_DURATION_S, MIN_INTERVAL_S, MIN_REFUSALS, add_refusal, is_gone


def refused_at(*times_s: float) -> bool:
    refusals = None
    for now in times_s:
        refusals = add_refusal(refusals, now)
    return refusals is not None and is_gone(refusals)


@pytest.mark.parametrize(
    ("times_s", "gone"),
    [
        ([0.0], False),
        ([0, 1, 2, 3, 4], False),
        ([0, 40, 80], False),
        ([0, 40, 80, 119], False),
        ([0, 40, 80, 120], True),
        ([0, 0.5, 119, 119.5, 240], False),
        ([0, 120, 240, 360], True),
        ([0, 40, 80, 80 + MAX_AGE_S + 1], False),
    ],
)
def test_a_job_is_gone_after_several_refusals_over_minutes(times_s: list[float], gone: bool) -> None:
    assert refused_at(*times_s) is gone


def test_refusals_in_quick_succession_count_as_one() -> None:
    times_s = [number * MIN_INTERVAL_S * 0.9 for number in range(MIN_REFUSALS)]
    assert not refused_at(*times_s)
    assert not refused_at(*[MIN_DURATION_S + number for number in range(100)])
