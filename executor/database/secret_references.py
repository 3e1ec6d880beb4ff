"""Binds each secret of FulcrumCore's vault to a service: the first service whose job names the secret.

The agent fails a job that names another service's secret, so no tenant gets a secret of another tenant. A job names a
secret by a reference. FulcrumCore returns every secret to every agent, and does not say to which service a secret
belongs. FulcrumCore creates a new reference for each value of a service's secret property, so two services never have
the same reference. The table `secret_references` contains the SHA-256 of a reference instead of the
reference itself, so that the table reveals no reference. The caller commits.
"""

from __future__ import annotations

from collections.abc import Collection
from hashlib import sha256

from sqlalchemy import delete, exists, func, select
from sqlalchemy.orm import Session

from executor.database.literals import DELETED_LITERAL
from executor.database.statements import execute_and_count, insert_into
from executor.database.tables.jobs import Job
from executor.database.tables.mappings import Mapping, SecretReference
from executor.database.times import utc_now


def bind(session: Session, service_id: str, references: Collection[str]) -> None:
    """Bind references to a service. The binding of a reference that is bound already does not change."""
    now = utc_now()
    # All transactions insert in the same order, so that the transactions of two agent processes cannot deadlock.
    digests = sorted({_digest(reference) for reference in references})
    if not digests:
        return
    values = [{"sha256": digest, "service_id": service_id, "bound_at": now} for digest in digests]
    session.execute(insert_into(session, SecretReference).values(values).on_conflict_do_nothing())


def service_ids_by_reference(session: Session, references: Collection[str]) -> dict[str, str]:
    """Return the service id of each of these references that is bound to a service. The keys are the references."""
    digests = {reference: _digest(reference) for reference in references}
    stmt = select(SecretReference.sha256, SecretReference.service_id)
    service_id_by_digest = dict(session.execute(stmt.where(SecretReference.sha256.in_(set(digests.values())))).all())
    return {
        reference: service_id_by_digest[digest]
        for reference, digest in digests.items()
        if digest in service_id_by_digest
    }


def count_rows_of_service(session: Session, service_id: str) -> int:
    """Return the number of rows of a service: how many references are bound to it."""
    stmt = select(func.count()).select_from(SecretReference).where(SecretReference.service_id == service_id)
    return session.scalar(stmt) or 0


def delete_rows_of_service(session: Session, service_id: str) -> None:
    """Delete the rows of the references that are bound to a service."""
    session.execute(delete(SecretReference).where(SecretReference.service_id == service_id))


def prune(session: Session, *, limit: int) -> int:
    """Delete at most `limit` rows of services that have neither a job nor a mapping, and return their number.

    A mapping in the state deleted does not count.
    """
    has_job = exists().where(Job.service_id == SecretReference.service_id)
    # DELETED_LITERAL is text in the SQL. With a bound parameter, SQLite would not use the partial index of mappings.
    has_mapping = exists().where(Mapping.service_id == SecretReference.service_id, Mapping.state != DELETED_LITERAL)
    unused_digests = select(SecretReference.sha256).where(~has_job, ~has_mapping).limit(limit)
    return execute_and_count(
        session,
        delete(SecretReference)
        .where(SecretReference.sha256.in_(session.scalars(unused_digests).all()))
        .execution_options(synchronize_session=False),
    )


def _digest(reference: str) -> str:
    """Return the SHA-256 of a reference. Upper and lower case do not differ, as in a UUID."""
    return sha256(reference.lower().encode()).hexdigest()
