"""Erasing the data of a service, and which changes the triggers of the audit table allow, on both databases."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, text, update
from sqlalchemy.exc import DBAPIError
from support.cli_world import submit

from executor.database import audit, audit_queries, erasure
from executor.database.engine import read_only_session, transaction
from executor.database.tables.jobs import Job
from executor.database.times import utc_now

SERVICE = "aaaa1111-0000-4000-8000-000000000000"


def test_an_erasure_deletes_the_rows_of_a_service_and_the_values_in_its_audit_entries(engine: Engine) -> None:
    with transaction(engine) as session:
        job_id = submit(session, service_id=SERVICE)
        session.execute(update(Job).where(Job.id == job_id).values(status="failed", finished_at=utc_now()))
        before = {"service_id": SERVICE}
        audit.add_entry(
            session, who="alice", verb="cancel", subject_kind="job", subject_id="x", before=before, reason="y"
        )
        audit.add_entry(session, who="alice", verb="cancel", subject_kind="job", subject_id="z", reason="kept")
    with transaction(engine) as session:
        data = erasure.find_stored_data(session, SERVICE)
        assert (data.job_ids, data.audit_entry_count) == ([job_id], 1)
        erasure.erase(session, data, who="bob", reason="")
    erasure.overwrite_deleted_rows(engine)
    with read_only_session(engine) as session:
        assert erasure.find_stored_data(session, SERVICE).is_empty
        entries = [(entry.verb, entry.before, entry.reason) for entry in audit_queries.list_entries(session)]
    assert entries == [("erase", None, None), ("cancel", None, "kept"), ("cancel", None, None)]


@pytest.mark.parametrize(
    "change",
    [
        "who = 'nobody', before = NULL, after = NULL, reason = NULL",
        "verb = 'x', before = NULL, after = NULL, reason = NULL",
        "subject_id = 'x', before = NULL, after = NULL, reason = NULL",
        "before = NULL, after = NULL, reason = 'other'",
        "reason = NULL",
    ],
)
def test_an_update_of_an_audit_entry_other_than_an_erasure_is_refused(change: str, engine: Engine) -> None:
    with transaction(engine) as session:
        values: dict[str, Any] = {"before": {"state": "active"}, "reason": "r"}
        audit.add_entry(session, who="alice", verb="adopt", subject_kind="mapping", subject_id=SERVICE, **values)
    with pytest.raises(DBAPIError, match="append-only"), engine.begin() as connection:
        connection.execute(text(f"UPDATE audit SET {change}"))  # noqa: S608 (the texts above)
