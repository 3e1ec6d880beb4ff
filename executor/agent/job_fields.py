"""Reads values from a job's row."""

from __future__ import annotations

from typing import Any

from executor.database import vm_names
from executor.database.tables.jobs import Job
from executor.errors import JobError
from executor.fulcrum.vault import JobForSecretResolver
from executor.model import ReportState
from executor.shared.error_codes import ErrorCode


def is_created_by_agent(job: Job) -> bool:
    """True for a local job: the agent itself created it, and FulcrumCore does not know it.

    After the deletion of a service, the VM is kept for a grace period. Then the agent creates a local job that deletes
    the VM.
    """
    return job.report_state == ReportState.LOCAL


def require_service_id(job: Job) -> str:
    """Return the id of the job's service. Raises JobError when the job has no service id."""
    if job.service_id is None:
        # This is unexpected. For a job without a service id, the poller stores a text in the column `defect`. The
        # worker checks this column first and fails the job.
        raise JobError(ErrorCode.INVALID_REQUEST, "the job contains no service id")
    return job.service_id


def properties_with_vault_references(job: Job) -> dict[str, Any]:
    """Return all properties as FulcrumCore sent them. A value can be a reference to a secret in FulcrumCore's vault.

    The properties of a job are its params. If the job has no params, the properties of its service are used.
    """
    properties: dict[str, Any] = job.params or (job.service or {}).get("properties") or {}
    return properties


def new_vm_name(job: Job) -> str:
    """Return the name that a new VM of the job's service gets."""
    hostname = properties_with_vault_references(job).get("hostname") or (job.service or {}).get("name") or "vm"
    return vm_names.vm_name(str(hostname), require_service_id(job))


def job_for_secret_resolver(job: Job) -> JobForSecretResolver:
    """Return the values of the job that SecretResolver needs to replace vault references with secrets."""
    return JobForSecretResolver(action=job.action, service=job.service, params=job.params, attempt=job.attempt)
