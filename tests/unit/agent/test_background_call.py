"""A function that takes long is called while the main thread reports progress."""

from __future__ import annotations

import threading

import pytest

from executor.agent.background_call import call_while_reporting_progress
from executor.errors import DatabaseUnavailable

WITHIN_S = 60


def test_progress_is_reported_until_the_function_has_ended() -> None:
    enough, reports = threading.Event(), []

    def report() -> None:
        reports.append(threading.current_thread())
        if len(reports) == 3:
            enough.set()

    assert call_while_reporting_progress(lambda: enough.wait(WITHIN_S), report)

    assert enough.is_set()
    assert set(reports) == {threading.current_thread()}


def test_an_exception_of_the_function_is_raised_in_the_calling_thread() -> None:
    def fail() -> None:
        raise DatabaseUnavailable("locked")

    with pytest.raises(DatabaseUnavailable, match="locked"):
        call_while_reporting_progress(fail, lambda: None)


def test_a_function_that_has_not_ended_in_time_is_no_longer_waited_for() -> None:
    release, ended = threading.Event(), threading.Event()

    def wait() -> None:
        release.wait(WITHIN_S)
        ended.set()

    assert not call_while_reporting_progress(wait, lambda: None, timeout_s=0)

    assert not ended.is_set()
    release.set()
    assert ended.wait(WITHIN_S)
