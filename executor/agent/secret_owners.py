"""Stores which service owns each reference to a secret, and fails a job that names a reference of another service.

A reference is the text by which a job names a secret in FulcrumCore's vault. Without this module, a tenant that knows a
reference of another tenant could write the reference into a secret property of its own service, and would get the
secret in its own VM. FulcrumCore does not say to which service a secret belongs.

To bind a reference is to store in the database to which service it belongs. The poller binds each reference when the
poller stores the first job that names the reference. The worker binds a reference that has no row, for example after a
loss of the database.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from executor.agent.job_fields import require_service_id
from executor.database import job_queue, notifications, secret_references
from executor.database.engine import read_only_session, transaction
from executor.database.job_queue import NewJob
from executor.database.tables.jobs import Job
from executor.errors import FulcrumUnavailable, JobError
from executor.fulcrum.vault import JobForSecretResolver, ReferenceUse, SecretResolver
from executor.log import get_logger
from executor.shared.error_codes import ErrorCode

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = get_logger(__name__)

#: Maximum number of references per job that are bound when the job is stored. The worker binds the job's remaining
#: references.
MAX_BOUND_REFERENCES = 100


def store_jobs_and_secret_owners(engine: Engine, secret_resolver: SecretResolver, new_jobs: Iterable[NewJob]) -> int:
    """Add a row for each job that has none, and bind the references that the jobs name. Return the number of new rows.

    The jobs are stored in the order in which FulcrumCore created them (`core_created_at`). FulcrumCore creates a
    reference together with the first job that names it. So if several jobs name one reference, the secret belongs to
    the service of the oldest of these jobs.
    """
    jobs = sorted(new_jobs, key=lambda new_job: new_job.core_created_at)
    # This call precedes the transaction, because it may send requests to FulcrumCore.
    references = _references_of_jobs(secret_resolver, jobs)
    count = 0
    with transaction(engine) as session:
        for new_job in jobs:
            if job_queue.submit(session, new_job) is None:
                continue  # another agent process has added the job's row meanwhile, and has bound the references
            count += 1
            if new_job.service_id is not None:
                secret_references.bind(session, new_job.service_id, references.get(new_job.fulcrum_id, ()))
        if count:
            notifications.notify_agent_processes_of_jobs(session)
    return count


def _references_of_jobs(secret_resolver: SecretResolver, jobs: Iterable[NewJob]) -> dict[str, list[str]]:
    """Return the references in the secret properties of the jobs. The keys are the ids of the jobs in FulcrumCore.

    Only a job's service type says which properties are secret. A job is left out if FulcrumCore does not return its
    service type. If FulcrumCore does not answer, all further jobs are left out, too. The worker binds the references of
    these jobs. A ReferenceUse is a reference together with the name of the property that contains it.
    """
    references: dict[str, list[str]] = {}
    for job in jobs:
        resolver_input = JobForSecretResolver(action=job.action, service=job.service, params=job.params)
        property_sets = (job.params or {}, (job.service or {}).get("properties") or {})
        try:
            uses = [
                use
                for properties in property_sets
                for use in secret_resolver.reference_uses_in(resolver_input, properties)
            ]
        except JobError:
            continue
        except FulcrumUnavailable:
            return references  # each further job could wait for FulcrumCore as long as this one
        references[job.fulcrum_id] = [use.reference for use in uses[:MAX_BOUND_REFERENCES]]
    return references


def require_secrets_belong_to_service(engine: Engine, job: Job, reference_uses: Iterable[ReferenceUse]) -> None:
    """Raise JobError INVALID_REQUEST if one of the references is bound to a service other than the job's.

    A reference that is not bound yet is bound to the job's service.
    """
    property_name_by_reference = {use.reference: use.property_name for use in reference_uses}
    if not property_name_by_reference:
        return
    service_id = require_service_id(job)
    with read_only_session(engine) as session:
        owner_by_reference = secret_references.service_ids_by_reference(session, property_name_by_reference)
    if len(owner_by_reference) < len(property_name_by_reference):
        with transaction(engine) as session:
            secret_references.bind(session, service_id, property_name_by_reference)
            owner_by_reference = secret_references.service_ids_by_reference(session, property_name_by_reference)
    for reference, property_name in property_name_by_reference.items():
        # If a reference has no row after `bind`, the row belonged to another service and was deleted meanwhile, because
        # that service had neither a job nor a VM. The owner is gone, so this job may use the secret.
        owner_service_id = owner_by_reference.get(reference, service_id)
        if owner_service_id != service_id:
            log.warning("secret_of_other_service", property=property_name, owner_service_id=owner_service_id)
            raise JobError(
                ErrorCode.INVALID_REQUEST, f"the secret in the property {property_name} belongs to another service"
            )
