"""Whether FulcrumCore has received a heartbeat of another installation, with another database and the same token."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from executor.agent.token_use import is_token_used_elsewhere
from executor.fulcrum.types import FulcrumAgent


def ago(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.now(UTC) - timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("status", "at_core_ago_s", "ours_ago_s", "offset_s", "expected"),
    [
        ("Connected", 5, None, 0, True),  # a new database
        ("Connected", 5, 3600, 0, True),
        ("Connected", 5, 6, 0, False),  # our own, before a restart
        ("Connected", 5, 30, 0, False),  # our own: our database gets its time up to 60 s later
        ("Connected", 300, None, 0, False),  # too old: that installation has ended
        ("Disconnected", 5, None, 0, False),
        ("Connected", 605, 5, -600, False),  # FulcrumCore's clock is ten minutes behind
        ("Connected", 605, 3600, -600, True),
        ("Connected", None, None, 0, False),
    ],
)
def test_a_recent_heartbeat_that_is_not_ours_is_found(
    status: str, at_core_ago_s: float | None, ours_ago_s: float | None, offset_s: float, expected: bool
) -> None:
    agent = FulcrumAgent.model_validate(
        {"id": "4f1c2b00-0000-4000-8000-000000000001", "status": status, "updatedAt": ago(at_core_ago_s)}
    )
    assert is_token_used_elsewhere(agent, ago(ours_ago_s), clock_offset_s=offset_s) is expected
