"""Reads from a job's row the values that several steps of its processing need."""

from __future__ import annotations

from typing import Any

from executor.database import mappings
from executor.database.tables import Job
from executor.errors import ErrorCode, JobError
from executor.fulcrum.vault import JobFacts
from executor.model import ReportState


def is_local(job: Job) -> bool:
    """True for a job that the agent created itself, to delete a VM. FulcrumCore does not know such a job."""
    return job.report_state == ReportState.LOCAL


def service_id(job: Job) -> str:
    """Return the id of the job's service. Raises JobError when there is none."""
    if job.service_id is None:  # unexpected: the poller marks such a job as defective, and the worker fails it
        raise JobError(ErrorCode.INVALID_REQUEST, "the job names no service")
    return job.service_id


def delivered_properties(job: Job) -> dict[str, Any]:
    """Return the properties as FulcrumCore delivered them: they contain references to the vault instead of secrets.

    A job with params has its properties there; a job without params has them in its service.
    """
    properties: dict[str, Any] = job.params or (job.service or {}).get("properties") or {}
    return properties


def vm_name(job: Job) -> str:
    """Return the name that a new VM of the job's service gets."""
    host = delivered_properties(job).get("hostname") or (job.service or {}).get("name") or "vm"
    return mappings.vm_name(str(host), service_id(job))


def secret_resolver_input(job: Job) -> JobFacts:
    """Return the values of the job that SecretResolver needs to resolve references to the vault."""
    return JobFacts(action=job.action, service=job.service, params=job.params, attempt=job.attempt)
