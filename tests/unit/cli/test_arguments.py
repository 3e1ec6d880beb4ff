"""The option --since: a duration that is counted back from now, or a time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import typer

from executor.cli.arguments import since_time


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("7d", 604_800), ("1w", 604_800), (" 1.5h ", 5400)]
)
def test_a_duration_is_counted_back_from_now(text: str, seconds: int) -> None:
    before = datetime.now(UTC)
    found = since_time(text)
    assert found is not None
    assert before <= found + timedelta(seconds=seconds) <= datetime.now(UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2025-11-27T08:00", datetime(2025, 11, 27, 8, 0, tzinfo=UTC)),
        ("2025-11-27", datetime(2025, 11, 27, 0, 0, tzinfo=UTC)),
        ("2025-11-27T08:00+05:00", datetime(2025, 11, 27, 3, 0, tzinfo=UTC)),
        ("2025-11-27T08:00:00Z", datetime(2025, 11, 27, 8, 0, tzinfo=UTC)),
        (None, None),
    ],
)
def test_a_time_without_a_zone_is_in_utc(text: str | None, moment: datetime | None) -> None:
    found = since_time(text)
    assert found == moment
    assert found is None or found.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    "text", ["", "h", "abc", "nans", "infd", "1e99d", "2025-13-01", "0001-01-01T00:00+14:00", "5x"]
)
def test_a_text_that_is_neither_a_duration_nor_a_time_is_a_usage_error(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="neither an age"):
        since_time(text)


@pytest.mark.parametrize("text", ["-5m", "2999-01-01", "2999-01-01T00:00+02:00"])
def test_a_time_in_the_future_is_refused_and_the_message_has_the_present_time(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"in the future; now it is .* \(UTC\)"):
        since_time(text)
