"""Reads values from a job's row, for the steps that process the job."""

from __future__ import annotations

from typing import Any

from executor.database import vm_names
from executor.database.tables.jobs import Job
from executor.errors import JobError
from executor.fulcrum.vault import JobWithReferences
from executor.model import ReportState
from executor.shared.error_codes import ErrorCode


def is_created_by_agent(job: Job) -> bool:
    """True for a local job: the agent created the job, to delete a VM. FulcrumCore does not know the job."""
    return job.report_state == ReportState.LOCAL


def require_service_id(job: Job) -> str:
    """Return the id of the job's service. Raises JobError when the job has no service id."""
    if job.service_id is None:
        # This is unexpected: for a job without a service id, the poller stores a text in the column `defect`, and the
        # worker fails a job that has such a text before it calls this function.
        raise JobError(ErrorCode.INVALID_REQUEST, "the job contains no service id")
    return job.service_id


def unresolved_properties(job: Job) -> dict[str, Any]:
    """Return the properties that FulcrumCore sent. They contain references to the vault, which are not resolved yet.

    The properties of a job are its params. If the job has no params, the properties of its service are used.
    """
    properties: dict[str, Any] = job.params or (job.service or {}).get("properties") or {}
    return properties


def new_vm_name(job: Job) -> str:
    """Return the name that a new VM of the job's service gets."""
    hostname = unresolved_properties(job).get("hostname") or (job.service or {}).get("name") or "vm"
    return vm_names.vm_name(str(hostname), require_service_id(job))


def secret_resolver_input(job: Job) -> JobWithReferences:
    """Return the input of SecretResolver: the values of the job that are needed to resolve references to the vault."""
    return JobWithReferences(action=job.action, service=job.service, params=job.params, attempt=job.attempt)
