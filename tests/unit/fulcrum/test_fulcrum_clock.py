"""The estimate of FulcrumCore's clock."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from executor.fulcrum.clock import ClockOffset


def test_the_offset_is_zero_before_the_first_date_and_after_an_unreadable_one() -> None:
    clock = ClockOffset()
    for date in (None, "", "soon", "Fri, 99 Jan 2026 03:04:05 GMT"):
        clock.add_sample(date, sent_at=1.0, received_at=2.0)
    assert clock.seconds == 0.0


def format_http_date(at: float) -> str:
    return datetime.fromtimestamp(int(at), UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")


@settings(deadline=None)  # a slow machine must not fail the test
@given(
    offset=st.floats(-7200, 7200),
    sends=st.lists(st.floats(0, 600), min_size=1, max_size=30),
    duration=st.floats(0, 0.5),
)
def test_the_error_of_the_estimate_is_at_most_one_second_plus_the_round_trip(
    offset: float, sends: list[float], duration: float
) -> None:
    clock = ClockOffset()
    for at in sorted(sends):
        sent_at = 1_767_000_000 + at
        clock.add_sample(
            format_http_date(sent_at + duration / 2 + offset), sent_at=sent_at, received_at=sent_at + duration
        )
    assert abs(clock.seconds - offset) <= (1 + duration) / 2 + 1e-3


def test_many_responses_make_the_estimate_more_precise_than_a_second() -> None:
    clock = ClockOffset()
    for tick in range(40):
        sent_at = 1_767_000_000 + tick * 1.025
        clock.add_sample(format_http_date(sent_at + 12.3), sent_at=sent_at, received_at=sent_at + 0.01)
    assert abs(clock.seconds - 12.3) < 0.06


def test_the_estimate_begins_anew_after_a_clock_was_set() -> None:
    clock = ClockOffset()
    clock.add_sample(format_http_date(1_767_000_000), sent_at=1_767_000_000, received_at=1_767_000_000.1)
    clock.add_sample(format_http_date(1_767_003_600), sent_at=1_767_000_001, received_at=1_767_000_001.1)
    assert abs(clock.seconds - 3599) <= 1


def test_a_response_received_before_its_request_is_ignored() -> None:
    """Our own clock was set back between request and response."""
    clock = ClockOffset()
    clock.add_sample(format_http_date(1_767_000_000), sent_at=1_767_000_900, received_at=1_767_000_000)
    assert clock.seconds == 0.0
