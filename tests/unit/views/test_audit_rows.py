"""How the changes that an audit entry has recorded are shown."""

from __future__ import annotations

import pytest

from executor.database.tables.audit import AuditEntry
from executor.views.audit_rows import change_text


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ("2026-11-27T20:30:07.732363+00:00", "2026-11-27 20:30:07Z"),
        ("2026-11-27T20:30:07+02:00", "2026-11-27 18:30:07Z"),
        ("2026-11-27", "2026-11-27"),
        ("web-1", "web-1"),
        (7, "7"),
    ],
)
def test_a_time_is_shown_as_in_every_other_column(stored: object, shown: str) -> None:
    assert change_text(AuditEntry(before={"since": None}, after={"since": stored})) == f"since: - -> {shown}"
