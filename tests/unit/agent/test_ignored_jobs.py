"""How often the number of ignored jobs is logged."""

from __future__ import annotations

from structlog.testing import capture_logs

from executor.agent.ignored_jobs import LOG_INTERVAL_S, IgnoredJobsLog


def counts_logged(*counts_at: tuple[float, int]) -> list[int]:
    """Return the numbers in the log after these numbers were noted at these times."""
    now = 0.0
    jobs_log = IgnoredJobsLog(event="pending_jobs_ignored", clock=lambda: now)
    with capture_logs() as lines:
        for now, count in counts_at:  # noqa: B007 (the clock reads it)
            jobs_log.note(count)
    return [line["count"] for line in lines]


def test_only_a_larger_number_is_logged_within_the_interval() -> None:
    assert counts_logged((0, 3), (2, 3), (4, 1), (6, 0), (8, 3), (10, 4)) == [3, 4]


def test_each_number_is_logged_after_the_interval() -> None:
    assert counts_logged((0, 5), (LOG_INTERVAL_S - 1, 2), (LOG_INTERVAL_S, 2), (LOG_INTERVAL_S + 1, 3)) == [5, 2, 3]


def test_no_line_without_ignored_jobs() -> None:
    assert counts_logged((0, 0), (LOG_INTERVAL_S, 0)) == []
