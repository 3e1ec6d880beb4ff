"""Converts jobs and runs to dictionaries for `--json` and for the tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from executor.cli.output import sanitized
from executor.database.tables import Job, Run
from executor.redaction import MASK

#: Names of keys whose values are masked. A reference to FulcrumCore's vault is not masked, because it is not a secret.
SECRET_NAME = re.compile(r"passw|passphrase|secret|token|private_?key|api_?key|credential", re.IGNORECASE)
#: The beginning of a reference to FulcrumCore's vault. It equals `executor.fulcrum.types.VAULT_PREFIX`, which is not
#: imported here, because its module imports pydantic.
VAULT_PREFIX = "vault://"


def name_of(job: Job) -> str:
    """Return the text that names the job in messages: our number, the action and FulcrumCore's id."""
    return sanitized(f"job {job.id} ({job.action}, {job.fulcrum_id})")


def summary(job: Job) -> dict[str, Any]:
    """Return the main columns of a job, with the keys that `smith jobs list --json` prints."""
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
        "run_ident": job.run_ident,
    }


def details(job: Job) -> dict[str, Any]:
    """Return all columns of a job with secrets masked, with the keys that `smith jobs show --json` prints."""
    return {
        "id": job.id,
        "fulcrum_id": job.fulcrum_id,
        "service_id": job.service_id,
        "group_id": job.group_id,
        "action": job.action,
        "status": job.status,
        "error_code": job.error_code,
        "error_message": job.error_message,
        "defect": job.defect,
        "priority": job.priority,
        "attempt": job.attempt,
        "crashes": job.crashes,
        "cancel_requested": job.cancel_requested,
        "owner": job.owner,
        "epoch": job.epoch,
        "core_created_at": job.core_created_at,
        "deadline_at": job.deadline_at,
        "received_at": job.received_at,
        "available_at": job.available_at,
        "lease_until": job.lease_until,
        "claim_sent_at": job.claim_sent_at,
        "claimed_at": job.claimed_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "reported_at": job.reported_at,
        "report_state": job.report_state,
        "report_attempts": job.report_attempts,
        "report_after": job.report_after,
        "report_note": job.report_note,
        "run_ident": job.run_ident,
        "params": without_secrets(job.params),
        "service": without_secrets(job.service),
        "result": without_secrets(job.result),
    }


def run_fields(run: Run) -> dict[str, Any]:
    """Return all columns of a run, with the keys of `--json`."""
    return {
        "ident": run.ident,
        "job_id": run.job_id,
        "attempt": run.attempt,
        "playbook": run.playbook,
        "status": run.status,
        "rc": run.rc,
        "reason": run.reason,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
        "folder": run.folder,
        "upids": run.upids or [],
    }


def without_secrets(value: Any, *, is_secret: bool = False) -> Any:
    """Return the value with all secrets masked. A value is a secret if the name of its key matches SECRET_NAME.

    `is_secret` is set in the recursion when the key of an outer mapping matches. References to FulcrumCore's vault,
    empty values and booleans are not masked.
    """
    if isinstance(value, Mapping):
        return {
            key: without_secrets(item, is_secret=is_secret or bool(SECRET_NAME.search(str(key))))
            for key, item in value.items()
        }
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [without_secrets(item, is_secret=is_secret) for item in value]
    if not is_secret or value in (None, "") or isinstance(value, bool):
        return value
    return value if isinstance(value, str) and value.startswith(VAULT_PREFIX) else MASK
