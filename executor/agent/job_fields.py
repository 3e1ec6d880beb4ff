"""What a job row says about its service: the values that several steps read from it."""

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
    """Return the service's id. Raises JobError when there is none."""
    if job.service_id is None:  # the poller marks such a job as defective, so the worker has failed it before
        raise JobError(ErrorCode.INVALID_REQUEST, "the job names no service")
    return job.service_id


def delivered_properties(job: Job) -> dict[str, Any]:
    """Return the properties as FulcrumCore delivered them: secrets are still references."""
    found: dict[str, Any] = job.params or (job.service or {}).get("properties") or {}
    return found


def vm_name(job: Job) -> str:
    """Return the name that the service's VM gets."""
    host = delivered_properties(job).get("hostname") or (job.service or {}).get("name") or "vm"
    return mappings.vm_name(str(host), service_id(job))


def secret_resolver_input(job: Job) -> JobFacts:
    """Return what the secret resolver needs to know of the job."""
    return JobFacts(action=job.action, service=job.service, params=job.params, attempt=job.attempt)
