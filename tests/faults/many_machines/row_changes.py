"""Lets PostgreSQL itself record each change of a job's owner, status and report, with the address of the machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from faults.system import SystemUnderTest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

Json = dict[str, Any]
#: A renewal of a lease is not recorded. The clock is that of this machine, as for all other records.
STATEMENTS = (
    """
    CREATE TABLE trial_job_changes (
        at double precision, address text, job text, service text, status text, epoch integer, owner text, run text,
        crashes integer, is_report_claimed boolean
    )
    """,
    """
    CREATE FUNCTION trial_record_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'UPDATE' AND
            (NEW.status, NEW.epoch, NEW.owner, NEW.run_ident, NEW.report_claimed_until) IS NOT DISTINCT FROM
            (OLD.status, OLD.epoch, OLD.owner, OLD.run_ident, OLD.report_claimed_until)
        THEN RETURN NULL; END IF;
        INSERT INTO trial_job_changes VALUES (
            extract(epoch FROM clock_timestamp()), host(inet_client_addr()), NEW.fulcrum_id, NEW.service_id, NEW.status,
            NEW.epoch, NEW.owner, NEW.run_ident, NEW.crashes,
            NEW.report_claimed_until IS NOT NULL
                AND (TG_OP = 'INSERT' OR NEW.report_claimed_until IS DISTINCT FROM OLD.report_claimed_until)
        );
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER trial_record_change AFTER INSERT OR UPDATE ON jobs
        FOR EACH ROW EXECUTE FUNCTION trial_record_change()
    """,
)


def record(system: SystemUnderTest) -> None:
    """Begin to record, in a table beside those of the executor."""
    engine = create_engine(system.database_url, poolclass=NullPool)
    with engine.begin() as connection:
        for statement in STATEMENTS:
            connection.execute(text(statement))


def records(system: SystemUnderTest, names: Mapping[str, str]) -> list[Json]:
    """Return what was recorded. `names` has the name of each machine by its address."""
    rows = system.rows("SELECT * FROM trial_job_changes ORDER BY at")
    return [
        {"kind": "job", "node": names.get(row.pop("address"))} | row | {"at": float(row["at"])}
        for row in map(dict, rows)
    ]
