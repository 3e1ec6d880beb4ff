"""Reads the values that several steps need from a job's row."""

from __future__ import annotations

from typing import Any

from executor.database import mappings
from executor.database.tables import Job
from executor.errors import ErrorCode, JobError
from executor.fulcrum.vault import JobFacts
from executor.model import ReportState


def is_local(job: Job) -> bool:
    """True for a job that the agent created itself: FulcrumCore does not know it."""
    return job.report_state == ReportState.LOCAL


def service_id(job: Job) -> str:
    """Return the id of the job's service. Raises JobError when there is none."""
    if job.service_id is None:  # not expected: the worker fails a job that the poller marked as defective
        raise JobError(ErrorCode.INVALID_REQUEST, "the job names no service")
    return job.service_id


def delivered_properties(job: Job) -> dict[str, Any]:
    """Return the properties as FulcrumCore delivered them: secrets are still references to the vault."""
    properties: dict[str, Any] = job.params or (job.service or {}).get("properties") or {}
    return properties


def vm_name(job: Job) -> str:
    """Return the name that the service's VM gets."""
    host = delivered_properties(job).get("hostname") or (job.service or {}).get("name") or "vm"
    return mappings.vm_name(str(host), service_id(job))


def secret_resolver_input(job: Job) -> JobFacts:
    """Return the values of the job that SecretResolver needs."""
    return JobFacts(action=job.action, service=job.service, params=job.params, attempt=job.attempt)
