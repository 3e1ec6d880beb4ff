"""How often the agent logs the number of ignored jobs, which is the same in many responses of FulcrumCore."""

from __future__ import annotations

from executor.agent.log_limiter import LOG_INTERVAL_S, LogLimiter


def counts_logged(*counts_at: tuple[float, int]) -> list[int]:
    """Return the numbers that are logged when these numbers arrive at these times."""
    now = 0.0
    limiter = LogLimiter(clock=lambda: now)
    logged = []
    for now, count in counts_at:  # noqa: B007 (the clock reads it)
        if limiter.should_log(count):
            logged.append(count)
    return logged


def test_only_a_larger_number_is_logged_within_the_interval() -> None:
    assert counts_logged((0, 3), (2, 3), (4, 1), (6, 0), (8, 3), (10, 4)) == [3, 4]


def test_after_the_interval_any_number_is_logged() -> None:
    assert counts_logged((0, 5), (LOG_INTERVAL_S - 1, 2), (LOG_INTERVAL_S, 2), (LOG_INTERVAL_S + 1, 3)) == [5, 2, 3]


def test_without_ignored_jobs_nothing_is_logged() -> None:
    assert counts_logged((0, 0), (LOG_INTERVAL_S, 0)) == []
