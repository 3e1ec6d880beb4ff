"""Step 6 of a job's processing (ARCHITECTURE.md): reads a run's artifacts and concludes the job's result.

This module writes nothing. A playbook publishes its result document with `set_stats` under the name `vm_result`: once
when the VMID is certain, and again at its end. So the first document exists even if the run later fails, is killed or
times out. The error text of a failed run is the text of its last failed Ansible task without `ignore_errors`. In our
playbooks this is the last Ansible task of the `rescue` section, which fails with the final error text.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from executor.errors import ErrorCode, JobError
from executor.model import JobResult, RunArtifacts, RunStatus
from executor.proxmox import error_rules

#: A larger result document is refused, because only a defect of the playbook can cause it.
MAX_RESULT_BYTES = 64 * 1024
#: An exit code above this is 128 plus the number of the signal that ended the process, as in a shell.
SIGNAL_BASE = 128
#: The kinds of events that report a failed Ansible task.
FAILURES = frozenset({"runner_on_failed", "runner_on_unreachable", "runner_item_on_failed"})


class VmResult(BaseModel):
    """The result document, as docs/custom-actions.md defines it. A custom action may add members."""

    model_config = ConfigDict(extra="allow", frozen=True)

    vmid: int = Field(ge=100, le=999_999_999)
    node: str = ""
    name: str = ""
    status: Literal["running", "stopped", "absent"] = "stopped"
    mac_address: str = ""
    ip_addresses: list[str] = Field(default=[], max_length=64)
    upids: list[str] = Field(default=[], max_length=256)
    changed: bool = False
    adopted: bool = False  #: True if `create` found an existing VM of the service instead of making a new VM
    delete_at: int = Field(default=0, ge=0, le=253_402_300_799)  #: seconds since 1970; 0: no deletion is scheduled
    reboot_required: bool = False


def read(artifacts: RunArtifacts) -> JobResult:
    """Conclude from the artifacts how the run ended.

    A successful run without a valid result document becomes the failure RESULT_INVALID, because only the document
    states which VM serves the service. A failed run keeps its error code even if its document is invalid, because the
    error code decides whether the job is retried.
    """
    vm, failure = None, None
    try:
        document, failure = _scan(artifacts)
        vm = _validated(document)
    except JobError as error:
        if artifacts.status is RunStatus.SUCCESSFUL:
            return JobResult(succeeded=False, code=error.code, detail=_with_ident(error.detail, artifacts))
    if artifacts.status is RunStatus.SUCCESSFUL:
        return _success(vm, artifacts)
    signal_number = _signal_that_killed(artifacts)
    error_text = failure if signal_number is None else _signal_text(signal_number)
    code, detail = _failure(artifacts.status, error_text)
    detail = _with_ident(detail, artifacts)
    return JobResult(succeeded=False, vm=vm or {}, code=code, detail=detail, was_killed=signal_number is not None)


def _success(vm: dict[str, Any] | None, artifacts: RunArtifacts) -> JobResult:
    if vm is None:
        detail = _with_ident("the playbook succeeded but published no vm_result", artifacts)
        return JobResult(succeeded=False, code=ErrorCode.RESULT_INVALID, detail=detail)
    return JobResult(succeeded=True, vm=vm)


def _signal_that_killed(artifacts: RunArtifacts) -> int | None:
    """Return the number of the signal that killed the run.

    Return None when the run ended by itself or the agent ended it.
    """
    signal_number = artifacts.rc - SIGNAL_BASE
    return signal_number if artifacts.status is RunStatus.FAILED and 0 < signal_number < signal.NSIG else None


def _signal_text(signal_number: int) -> str:
    cause = ", perhaps because memory ran out" if signal_number == signal.SIGKILL else ""
    return f"the playbook was killed by signal {signal_number}{cause}"


def _failure(status: RunStatus, text: str | None) -> tuple[ErrorCode, str]:
    # When the agent has ended the run, the last failed Ansible task is not the reason of the failure. A `rescue`
    # section has probably handled that error.
    if status is RunStatus.CANCELED:
        return ErrorCode.CANCELLED, "the run was cancelled"
    if status is RunStatus.TIMEOUT:
        return ErrorCode.TASK_TIMEOUT, "playbook timed out"
    if text is None:
        return ErrorCode.PLAYBOOK_FAILED, "playbook failed without an error message"
    classified = error_rules.classify(text)
    return ErrorCode(classified.code), classified.text


def _with_ident(detail: str, artifacts: RunArtifacts) -> str:
    # The text of a playbook may contain characters that a database rejects (NUL, an unpaired surrogate) or that a
    # terminal would interpret.
    printable = "".join(char if char.isprintable() else " " for char in detail)
    return f"{printable} (run {artifacts.ident})"


def _scan(artifacts: RunArtifacts) -> tuple[dict[str, Any] | None, str | None]:
    """Return the last result document and the text of the last failure that was not ignored; None for a missing one.

    An invalid playbook fails before its first Ansible task. Then the text is the error message in the output.
    """
    document, failure, output_error = None, None, None
    for event in _events(artifacts):
        data = event.get("event_data")
        data = data if isinstance(data, dict) else {}
        kind = str(event.get("event"))
        if (published := _document_of(data)) is not None:
            document = published
        if kind in FAILURES and not data.get("ignore_errors"):
            failure = _text_of(data)
        elif kind == "verbose" and "ERROR" in str(event.get("stdout", "")):
            output_error = str(event["stdout"])
    return document, failure or output_error


def _events(artifacts: RunArtifacts) -> Iterator[dict[str, Any]]:
    file = artifacts.folder / "events.jsonl"
    try:
        lines = file.open(encoding="utf-8", errors="replace")
    except OSError as error:
        reason = f"the run's artifacts cannot be read: {error.strerror}"
        raise JobError(ErrorCode.RESULT_INVALID, reason) from error
    with lines:
        for line in lines:
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue  # a crash of the agent has truncated this line
            if isinstance(event, dict):
                yield event


def _document_of(data: dict[str, Any]) -> Any:
    """Return the result document in an event's data; None if the event contains no document."""
    stats = data.get("artifact_data")  # in the final event, playbook_on_stats
    if not isinstance(stats, dict):
        result = data.get("res")
        stats = result.get("ansible_stats") if isinstance(result, dict) else None
        stats = stats.get("data") if isinstance(stats, dict) else None
    return stats.get("vm_result") if isinstance(stats, dict) else None


def _text_of(data: dict[str, Any]) -> str:
    """Return the error message of a failed Ansible task."""
    result = data.get("res")
    result = result if isinstance(result, dict) else {}
    items = result.get("results")
    failed = (
        [item for item in items if isinstance(item, dict) and item.get("failed")] if isinstance(items, list) else []
    )
    message = (failed[-1] if failed else result).get("msg")  # a loop's own message only states that an item failed
    return str(message or result.get("censored") or "the Ansible task failed without an error message")


def _validated(document: Any) -> dict[str, Any] | None:
    """Check the result document and return it with all members. Raises JobError RESULT_INVALID."""
    if document is None:
        return None
    if _size_of(document) > MAX_RESULT_BYTES:
        raise JobError(ErrorCode.RESULT_INVALID, f"vm_result is larger than {MAX_RESULT_BYTES} bytes")
    try:
        return VmResult.model_validate(document).model_dump()
    except ValidationError as error:
        members = sorted({".".join(str(part) for part in item["loc"]) or "document" for item in error.errors()})
        raise JobError(ErrorCode.RESULT_INVALID, f"vm_result is not valid at: {', '.join(members)}") from None


def _size_of(document: Any) -> int:
    """Return the document's size in bytes. Raises JobError for a value that PostgreSQL or FulcrumCore would reject."""
    try:
        text = json.dumps(document, allow_nan=False, ensure_ascii=False)
        if r"\u0000" in text:
            raise ValueError("NUL")
        return len(text.encode())
    except (ValueError, RecursionError):
        raise JobError(ErrorCode.RESULT_INVALID, "vm_result contains a value that cannot be stored") from None
