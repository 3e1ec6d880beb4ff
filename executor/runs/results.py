"""Step 6 of a job's processing (ARCHITECTURE.md): reads a run's artifacts and concludes the job's result.

This module writes nothing. A playbook publishes its result document with `set_stats` under the name `vm_result`. A
playbook that fails publishes the document if the playbook already knows which VM serves the service. A run that is
killed or that times out may have no document. The error text of a failed run is the text of its last failed Ansible
task without `ignore_errors`. In our playbooks this is the last Ansible task of the `rescue` section, which fails with
the final error text.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from executor.errors import JobError
from executor.model import JobResult, RunArtifacts, RunStatus
from executor.processes.process_tree import EXIT_ENDED_BY_GUARD, EXIT_LEASE_LOST
from executor.shared import error_rules
from executor.shared.error_codes import ErrorCode
from executor.shared.error_rules import ClassifiedFailure

#: Maximum size of a result document. A larger document is refused, because only a defect of the playbook can cause it.
MAX_RESULT_BYTES = 64 * 1024
#: Base of the exit code of a process that a signal ended: the exit code is 128 plus the signal's number, as in a shell.
SIGNAL_EXIT_CODE_BASE = 128
#: The kinds of events that report a failed Ansible task.
ANSIBLE_TASK_FAILURE_KINDS = frozenset({"runner_on_failed", "runner_on_unreachable", "runner_item_on_failed"})


#: Maps an error code to the text that tenants (the customers in FulcrumCore) read instead of Proxmox's text. Proxmox's
#: text may name nodes, templates and storages, and may state how much capacity is free.
TENANT_DETAILS: dict[ErrorCode, str] = {
    ErrorCode.CAPACITY: "there is not enough free capacity for this request",
    ErrorCode.NODE_DOWN: "a node does not answer",
    ErrorCode.NOT_FOUND: "an object that the job needs, such as a template, does not exist",
}

#: Matches an error text about a property of the service. Group 1 is the part that tenants may read. Only
#: operators may read the text in parentheses after group 1.
TEXT_ABOUT_PROPERTY = re.compile(r"(property [a-z_.]+: [^()]+?)(?: \([^()]*\))?\Z")
#: Matches the text about a snapshot of the tenant's own VM, which tenants may read.
TEXT_ABOUT_SNAPSHOT = re.compile(r"VM \d+ has no snapshot")
#: The kinds of events that report the beginning and the end of an Ansible task.
ANSIBLE_TASK_START_KINDS = frozenset({"playbook_on_task_start", "playbook_on_handler_task_start", "runner_on_start"})
ANSIBLE_TASK_END_KINDS = ANSIBLE_TASK_FAILURE_KINDS | {"runner_on_ok", "runner_on_skipped"}


class VmResult(BaseModel):
    """The result document, as docs/custom-actions.md defines it. A custom action may add members."""

    model_config = ConfigDict(extra="allow", frozen=True)

    vmid: int = Field(ge=100, le=999_999_999)
    #: The maximum lengths of `node`, `name` and `mac_address` are the lengths of the columns in the table `mappings`.
    node: str = Field(default="", max_length=100)
    name: str = Field(default="", max_length=100)
    status: Literal["running", "stopped", "absent"] = "stopped"
    mac_address: str = Field(default="", max_length=20)
    ip_addresses: list[str] = Field(default=[], max_length=64)
    upids: list[str] = Field(default=[], max_length=256)
    changed: bool = False
    adopted: bool = False  #: True if `create` found an existing VM of the service instead of making a new VM
    #: seconds since 1970, at most the end of the year 9999; 0 if no deletion is scheduled
    delete_at: int = Field(default=0, ge=0, le=253_402_300_799)
    reboot_required: bool = False


def read_result(artifacts: RunArtifacts) -> JobResult:
    """Return the job's result, which this function concludes from the artifacts of the run.

    A successful run without a valid result document becomes the failure RESULT_INVALID, because only the document
    states which VM serves the service. A failed run keeps the error code of its failure even if its document is
    invalid, because this error code decides whether the job is retried.
    """
    vm, failure = None, None
    try:
        document, failure = _find_document_and_failure(artifacts)
        vm = _validate_document(document)
    except JobError as error:
        if artifacts.status is RunStatus.SUCCESSFUL:
            detail = _printable_with_run_ident(error.detail, artifacts)
            return JobResult(succeeded=False, code=error.code, detail=detail)
    if artifacts.status is RunStatus.SUCCESSFUL:
        return _result_of_success(vm, artifacts)
    kill_description = _describe_kill(artifacts)
    if kill_description:
        # An error code at the beginning of the text becomes the code of the failure.
        failure = error_rules.classify_failure_keeping_code(kill_description)
    code, operator_detail = _code_and_detail(artifacts.status, failure)
    return JobResult(
        succeeded=False,
        vm=vm or {},
        code=code,
        detail=_printable_with_run_ident(detail_for_tenants(code, operator_detail), artifacts),
        operator_detail=_printable_with_run_ident(operator_detail, artifacts),
        is_effect_unknown=kill_description is not None,  # it is unknown what a killed run has changed
    )


def _result_of_success(vm: dict[str, Any] | None, artifacts: RunArtifacts) -> JobResult:
    if vm is None:
        detail = _printable_with_run_ident("the playbook succeeded but published no vm_result", artifacts)
        return JobResult(succeeded=False, code=ErrorCode.RESULT_INVALID, detail=detail)
    return JobResult(succeeded=True, vm=vm)


def _describe_kill(artifacts: RunArtifacts) -> str | None:
    """Return how the run was killed; None if the run ended by itself, was cancelled, or timed out.

    The text may begin with an error code. The changes that a killed run has made are unknown.

    A run counts as killed if it could not be started, or if a part of its output was lost. A run whose last Ansible
    task has no result counts as killed, because the process of this task was killed.
    """
    if artifacts.status is not RunStatus.FAILED:
        return None
    if artifacts.rc == EXIT_LEASE_LOST:
        return f"{ErrorCode.LEASE_LOST}: the run was ended, because the lease of its job was not renewed in time"
    # The guard of a run is the process that ends the run's processes when the agent dies or does not renew its leases
    # in time. A failed run has the exit code EXIT_ENDED_BY_GUARD in four cases:
    # - Another process sent TERM to the guard, and the guard ended the run.
    # - The agent made the guard end the run, because the run folder, to which the run writes its artifacts, was full,
    #   and the run then printed nothing for a long time. After a failed write, Ansible may wait for ever.
    # - A part of the output could not be stored, because the run folder was full. The run may have ended by itself.
    # - The guard could not be started.
    if artifacts.rc == EXIT_ENDED_BY_GUARD:
        return "the playbook was killed, or could not be started, or a part of its output was lost"
    signal_number = artifacts.rc - SIGNAL_EXIT_CODE_BASE
    if not 0 < signal_number < signal.NSIG:
        is_ansible_task_killed = _is_last_ansible_task_unfinished(artifacts)
        return (
            "the process of an Ansible task was killed, perhaps because memory ran out"
            if is_ansible_task_killed
            else None
        )
    cause = ", perhaps because memory ran out" if signal_number == signal.SIGKILL else ""
    return f"the playbook was killed by signal {signal_number}{cause}"


def _is_last_ansible_task_unfinished(artifacts: RunArtifacts) -> bool:
    """Return True if the last Ansible task that began has no result."""
    is_unfinished = False
    try:
        for event in _read_events(artifacts):
            kind = str(event.get("event"))
            is_unfinished = kind in ANSIBLE_TASK_START_KINDS or (is_unfinished and kind not in ANSIBLE_TASK_END_KINDS)
    except JobError:
        return False
    return is_unfinished


def _code_and_detail(status: RunStatus, failure: ClassifiedFailure | None) -> tuple[ErrorCode, str]:
    """Return the error code and the error text of a failed run.

    If the agent has ended the run, `failure` is not used, because the failure did not end the run. For example, it may
    be an earlier error of an Ansible task that a `rescue` section has handled.
    """
    if status is RunStatus.CANCELED:
        return ErrorCode.CANCELLED, "the run was cancelled"
    if status is RunStatus.TIMEOUT:
        return ErrorCode.TASK_TIMEOUT, "playbook timed out"
    if failure is None:
        return ErrorCode.PLAYBOOK_FAILED, "playbook failed without an error message"
    return ErrorCode(failure.code), failure.text


def detail_for_tenants(code: ErrorCode, detail: str) -> str:
    """Return the error text without the names and figures that tenants must not read."""
    if about_property := TEXT_ABOUT_PROPERTY.match(detail):
        return about_property.group(1)
    return detail if TEXT_ABOUT_SNAPSHOT.match(detail) else TENANT_DETAILS.get(code, detail)


def _printable_with_run_ident(detail: str, artifacts: RunArtifacts) -> str:
    """Return the error text and the run's ident, if the run has one. Spaces replace unprintable characters.

    The error text of a playbook may contain characters that a database rejects (NUL, an unpaired surrogate) or that a
    terminal would interpret as control sequences.
    """
    printable = "".join(char if char.isprintable() else " " for char in detail)
    return f"{printable} (run {artifacts.ident})" if artifacts.ident else printable


def _find_document_and_failure(artifacts: RunArtifacts) -> tuple[dict[str, Any] | None, ClassifiedFailure | None]:
    """Return the last result document, and the last failure that was not ignored.

    The document or the failure is None if the artifacts do not contain it. If a playbook is invalid, ansible-playbook
    fails before the first Ansible task. Then the failure is the error message in the output of ansible-playbook.
    """
    document, failure, output_error = None, None, None
    for event in _read_events(artifacts):
        data = event.get("event_data")
        data = data if isinstance(data, dict) else {}
        kind = str(event.get("event"))
        if (published_document := _find_document(data)) is not None:
            document = published_document
        if kind in ANSIBLE_TASK_FAILURE_KINDS and not data.get("ignore_errors"):
            failure = _classify_ansible_task_failure(data)
        # "verbose" is ansible-runner's event for output that belongs to no other event.
        elif kind == "verbose" and "ERROR" in str(event.get("stdout", "")):
            output_error = error_rules.classify_failure(str(event["stdout"]))
    return document, failure or output_error


def _read_events(artifacts: RunArtifacts) -> Iterator[dict[str, Any]]:
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


def _find_document(data: dict[str, Any]) -> Any:
    """Return the result document in an event's data; None if the event contains no document."""
    stats = data.get("artifact_data")  # the final event, playbook_on_stats, has this member
    if not isinstance(stats, dict):  # the event of an Ansible task has the member res.ansible_stats.data
        result = data.get("res")
        ansible_stats = result.get("ansible_stats") if isinstance(result, dict) else None
        stats = ansible_stats.get("data") if isinstance(ansible_stats, dict) else None
    return stats.get("vm_result") if isinstance(stats, dict) else None


def _classify_ansible_task_failure(data: dict[str, Any]) -> ClassifiedFailure:
    """Return the failure of a failed Ansible task."""
    result = data.get("res")
    result = result if isinstance(result, dict) else {}
    loop_items = result.get("results")
    loop_items = loop_items if isinstance(loop_items, list) else []
    failed_items = [item for item in loop_items if isinstance(item, dict) and item.get("failed")]
    # The message of a loop only states that an item failed, so the message of the last failed item is used.
    failed_result = failed_items[-1] if failed_items else result
    # If the Ansible task has `no_log`, the member `censored` replaces the message.
    text = failed_result.get("msg") or result.get("censored") or "the Ansible task failed without an error message"
    action = str(data.get("resolved_action") or data.get("task_action") or "")
    return error_rules.classify_ansible_task_failure(failed_result, str(text), action)


def _validate_document(document: Any) -> dict[str, Any] | None:
    """Check the result document. Return it with the default values of missing members.

    Raises JobError RESULT_INVALID.
    """
    if document is None:
        return None
    if _size_if_storable(document) > MAX_RESULT_BYTES:
        raise JobError(ErrorCode.RESULT_INVALID, f"vm_result is larger than {MAX_RESULT_BYTES} bytes")
    try:
        return VmResult.model_validate(document).model_dump()
    except ValidationError as error:
        paths = {".".join(str(part) for part in problem["loc"]) or "the whole document" for problem in error.errors()}
        raise JobError(ErrorCode.RESULT_INVALID, f"vm_result has invalid members: {', '.join(sorted(paths))}") from None


def _size_if_storable(document: Any) -> int:
    """Return the document's size in bytes.

    Raises JobError when the document contains a value that PostgreSQL or FulcrumCore would reject.
    """
    try:
        text = json.dumps(document, allow_nan=False, ensure_ascii=False)
        if r"\u0000" in text:  # the escape sequence of the character NUL
            raise ValueError("contains NUL")
        return len(text.encode())
    except (ValueError, RecursionError):
        raise JobError(ErrorCode.RESULT_INVALID, "vm_result contains a value that cannot be stored") from None
