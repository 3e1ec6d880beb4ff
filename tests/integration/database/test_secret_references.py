"""To which service a reference to FulcrumCore's vault is bound, and how long, on both databases."""

from __future__ import annotations

import uuid
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, select, update
from support.databases import new_job

from executor.agent.pruner import BATCH_SIZE, Pruner
from executor.database import erasure, job_queue, mappings, secret_references
from executor.database.engine import read_only_session, transaction
from executor.database.tables.jobs import Job
from executor.database.tables.mappings import SecretReference
from executor.database.times import utc_now
from executor.settings.settings import Settings

OWNER, OTHER = "aaaa1111-0000-4000-8000-000000000000", "bbbb2222-0000-4000-8000-000000000000"
FIRST, SECOND, UNKNOWN = (f"vault://{uuid.uuid4()}" for _ in range(3))


def test_a_reference_stays_bound_to_the_first_service(engine: Engine) -> None:
    with transaction(engine) as session:
        secret_references.bind(session, OWNER, [FIRST, FIRST])
        secret_references.bind(session, OTHER, [SECOND, FIRST])
        secret_references.bind(session, OTHER, [])
    with transaction(engine) as session:
        secret_references.bind(session, OTHER, [FIRST])
    with read_only_session(engine) as session:
        assert secret_references.service_ids_by_reference(session, [FIRST, SECOND, UNKNOWN]) == {
            FIRST: OWNER,
            SECOND: OTHER,
        }
        assert secret_references.service_ids_by_reference(session, []) == {}


def test_a_reference_in_capitals_is_the_same_reference(engine: Engine) -> None:
    capitals = "vault://" + FIRST.removeprefix("vault://").upper()
    with transaction(engine) as session:
        secret_references.bind(session, OWNER, [FIRST])
        secret_references.bind(session, OTHER, [capitals])
        assert secret_references.service_ids_by_reference(session, [capitals, FIRST]) == {capitals: OWNER, FIRST: OWNER}


def test_the_database_does_not_contain_the_reference(engine: Engine) -> None:
    with transaction(engine) as session:
        secret_references.bind(session, OWNER, [FIRST])
        (row,) = session.scalars(select(SecretReference))
    assert len(row.sha256) == 64
    assert FIRST.removeprefix("vault://") not in row.sha256


@pytest.mark.parametrize("kept_by", ["job", "mapping", "nothing"])
def test_the_row_of_a_reference_is_kept_as_long_as_its_service_has_a_job_or_a_vm(
    engine: Engine, tmp_path: Path, kept_by: str
) -> None:
    with transaction(engine) as session:
        secret_references.bind(session, OWNER, [FIRST])
        secret_references.bind(session, OTHER, [f"vault://{uuid.uuid4()}" for _ in range(BATCH_SIZE + 1)])
        mapping = mappings.reserve(session, service_id=OWNER, cluster="c", vmid=100, name="web")
        assert mapping is not None
        if kept_by != "mapping":
            mappings.mark_mapping_deleted(session, mapping.id, "gone")
        if kept_by == "job":
            job_queue.submit(session, new_job(service_id=OWNER))
    Pruner(engine=engine, settings=Settings(smith_data_dir=tmp_path)).prune()
    with read_only_session(engine) as session:
        assert list(session.scalars(select(SecretReference.service_id))) == ([] if kept_by == "nothing" else [OWNER])


def test_the_references_of_an_ended_service_are_erased_with_it(engine: Engine) -> None:
    with transaction(engine) as session:
        job_id = job_queue.submit(session, new_job(service_id=OWNER))
        ended = {"status": "failed", "finished_at": utc_now() - timedelta(days=999)}
        session.execute(update(Job).where(Job.id == job_id).values(**ended))
        secret_references.bind(session, OWNER, [FIRST])
        secret_references.bind(session, OTHER, [SECOND])
    with transaction(engine) as session:
        data = erasure.find_stored_data(session, OWNER)
        assert data.secret_reference_count == 1
        erasure.erase(session, data, who="bob", reason="")
    with read_only_session(engine) as session:
        assert secret_references.service_ids_by_reference(session, [FIRST, SECOND]) == {SECOND: OTHER}
        assert erasure.find_stored_data(session, OWNER).is_empty


def test_a_service_of_which_only_references_are_left_can_be_erased(engine: Engine) -> None:
    with transaction(engine) as session:
        secret_references.bind(session, OWNER, [FIRST])
        data = erasure.find_stored_data(session, OWNER)
        assert (data.is_empty, erasure.why_service_has_not_ended(session, data)) == (False, "")
