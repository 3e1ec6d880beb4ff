"""Converts jobs and runs to dictionaries, which commands print and web pages show."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from executor.redaction import MASK
from executor.views.text import sanitized

if TYPE_CHECKING:  # Not imported at run time, because the import would load SQLAlchemy's ORM, which is slow.
    from executor.database.tables.jobs import Job, JobEvent, ManualRun, Run
    from executor.database.tables.mappings import Mapping as MappingRow

#: Matches a key that contains one of these words, in upper or lower case. The values of such keys are masked.
SECRET_KEY_PATTERN = re.compile(r"passw|passphrase|secret|token|private_?key|api_?key|credential", re.IGNORECASE)
#: The beginning of a reference to a secret in FulcrumCore's vault. The reference itself is no secret. The value equals
#: `executor.fulcrum.types.VAULT_PREFIX`. This module does not import that constant, because `types` imports pydantic,
#: which takes time.
VAULT_PREFIX = "vault://"


def job_label(job: Job) -> str:
    """Return the text that identifies the job in messages: its number in the database, its action, FulcrumCore's id."""
    # `sanitized` masks secrets and escapes control characters.
    return sanitized(f"job {job.id} ({job.action}, {job.fulcrum_id})")


def summary_fields(job: Job) -> dict[str, Any]:
    """Return the main columns of a job as a dictionary with the keys of `smith jobs list --json`."""
    return {
        "id": job.id,
        "fulcrum_id": job.fulcrum_id,
        "service_id": job.service_id,
        "action": job.action,
        "status": job.status,
        "priority": job.priority,
        "attempt": job.attempt,
        "report_state": job.report_state,
        "error_code": job.error_code,
        "error_message": job.error_message,
        "received_at": job.received_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "reported_at": job.reported_at,
        "run_ident": job.run_ident,  # the id of the job's latest run
    }


def service_and_vm_fields(job: Job, mapping_by_service: Mapping[str, MappingRow]) -> dict[str, Any]:
    """Return the names of the job's service and VM, and the VMID.

    `mapping_by_service` contains the mappings (rows that assign a VM to a service), by service id. If the job's service
    has no mapping, for example after a deletion, the VMID and the VM's name come from the job's result.
    """
    mapping = mapping_by_service.get(job.service_id or "")
    result = job.result or {}
    name = (job.service or {}).get("name")
    return {
        "service_name": str(name) if name else None,
        "vmid": mapping.vmid if mapping else result.get("vmid"),
        "vm_name": mapping.name if mapping else result.get("name") or None,
    }


def detail_fields(job: Job) -> dict[str, Any]:
    """Return a job as a dictionary with the keys of `smith jobs show --json`. Secrets are masked."""
    return {
        "id": job.id,
        "fulcrum_id": job.fulcrum_id,
        "service_id": job.service_id,
        "group_id": job.group_id,  # the id of the service's group in FulcrumCore
        "action": job.action,
        "status": job.status,
        "error_code": job.error_code,
        "error_message": job.error_message,
        # a more detailed error text, which only operators may see
        "operator_detail": job.operator_detail if job.operator_detail != job.error_message else None,
        "defect": job.defect,  # why the job cannot run
        "priority": job.priority,
        "attempt": job.attempt,
        "crashes": job.crashes,  # number of attempts whose end was not stored, for example because the agent crashed
        "cancel_requested": job.cancel_requested,
        "owner": job.owner,
        "epoch": job.epoch,
        "core_created_at": job.core_created_at,  # when FulcrumCore created the job
        "deadline_at": job.deadline_at,  # when FulcrumCore fails the job if it has not ended
        "received_at": job.received_at,
        "available_at": job.available_at,  # when the backoff of a pending job ends
        "lease_until": job.lease_until,
        "claim_sent_at": job.claim_sent_at,  # when the agent last tried to claim the job at FulcrumCore
        "claimed_at": job.claimed_at,  # when FulcrumCore accepted the claim
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "reported_at": job.reported_at,
        "report_state": job.report_state,
        "report_attempts": job.report_attempts,
        "report_after": job.report_after,  # when the backoff of the report ends
        "report_note": job.report_note,  # explains `report_state`, or is the error of the last failed report
        "run_ident": job.run_ident,
        "params": mask_secrets(job.params),
        "service": mask_secrets(job.service),
        "result": mask_secrets(job.result),
    }


def run_fields(run: Run) -> dict[str, Any]:
    """Return a run as a dictionary with the keys that a run has in `--json`."""
    return {
        "ident": run.ident,
        "job_id": run.job_id,
        "attempt": run.attempt,
        "playbook": run.playbook,
        "status": run.status,
        "rc": run.rc,
        "reason": run.reason,  # the error message that results from the run
        "started_at": run.started_at,
        "ended_at": run.ended_at,
        "folder": run.folder,  # the folder of the artifacts
        "upids": run.upids or [],
    }


def event_fields(event: JobEvent) -> dict[str, Any]:
    """Return an event of a job, such as a requeue, as a dictionary with the keys of `--json`."""
    return {
        "kind": event.kind,
        "text": event.text,
        "attempt": event.attempt,
        "count": event.count,  # how many times in a row the event has happened
        "first_at": event.first_at,
        "last_at": event.last_at,
    }


def manual_run_fields(run: ManualRun) -> dict[str, Any]:
    """Return a run that an operator started as a dictionary with the keys of `run_fields` and four more.

    The four keys are the service, the VMID, the operator and the host of the run.
    """
    return {
        "ident": run.ident,
        "job_id": None,
        "attempt": None,
        "playbook": f"{run.action}.yml",
        "status": run.status,
        "rc": None,
        "reason": run.reason,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
        "folder": None,
        "upids": run.upids or [],
        "service_id": run.service_id,
        "vmid": run.vmid,
        "who": run.who,
        "host": run.host,
    }


def mask_secrets(value: Any, *, is_below_secret_key: bool = False) -> Any:
    """Return a copy of the value in which all secrets are masked.

    In a dictionary, every value below a key that matches SECRET_KEY_PATTERN is a secret, at any depth. Only the
    recursive calls set `is_below_secret_key`. References to FulcrumCore's vault, empty values and booleans are not
    masked.
    """
    if isinstance(value, Mapping):
        secret_keys = {key for key in value if is_below_secret_key or SECRET_KEY_PATTERN.search(str(key))}
        return {key: mask_secrets(item, is_below_secret_key=key in secret_keys) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [mask_secrets(item, is_below_secret_key=is_below_secret_key) for item in value]
    is_vault_reference = isinstance(value, str) and value.startswith(VAULT_PREFIX)
    is_empty_or_boolean = value in (None, "") or isinstance(value, bool)
    if not is_below_secret_key or is_vault_reference or is_empty_or_boolean:
        return value
    return MASK
