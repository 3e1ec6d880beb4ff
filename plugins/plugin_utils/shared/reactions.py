# SPDX-License-Identifier: Apache-2.0
"""The table of reactions: what happens after a failure with each error code.

By this table, the executor decides whether it retries a job, and an action decides whether it looks up the VM.
docs/errors.md shows the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reaction(StrEnum):
    """Whether, and how, a failed job is retried."""

    NO = "no"  #: not retried: the same request would fail the same way, or an operator must act
    LATER = "later"  #: retried after a backoff: nothing was changed, or the change can safely be repeated
    CHECK = "check"  #: retried: the change may have been made, and the idempotent playbook first checks what exists
    NEW_ID = "new_id"  #: retried with another VMID, unless the service already has a VM
    ONCE = "once"  #: retried once; the idempotent playbook first checks what exists


class Outcome(StrEnum):
    """What is known about a request to Proxmox that failed with a code."""

    KNOWN = "known"  #: Proxmox refused the request, or the Proxmox task failed: the action fails at once
    UNKNOWN = "unknown"  #: the change may have been made: the action looks up the VM, and fails only if it was not made
    UNSENT = "unsent"  #: this request changed nothing; but a module sends several, so the action looks up the VM


@dataclass(frozen=True)
class CodeRow:
    """The reaction to an error code, and what is known about the request that failed with it."""

    reaction: Reaction
    outcome: Outcome = Outcome.KNOWN


#: The table. Its keys are the members of `error_codes.ErrorCode`.
TABLE: dict[str, CodeRow] = {
    "VM_NOT_FOUND": CodeRow(Reaction.NO),
    "VM_NOT_RUNNING": CodeRow(Reaction.NO),
    "VM_STATE": CodeRow(Reaction.NO),
    "VM_IDENTITY_MISMATCH": CodeRow(Reaction.NO),
    "VM_PROTECTED": CodeRow(Reaction.NO),
    "VM_HALF_DESTROYED": CodeRow(Reaction.NO),
    "VM_LOCKED": CodeRow(Reaction.LATER),
    # An earlier attempt, or an earlier request of the same module, may have made the VM.
    "VM_ID_TAKEN": CodeRow(Reaction.NEW_ID, Outcome.UNKNOWN),
    "NOT_FOUND": CodeRow(Reaction.NO),
    # An operator or the tenant must act: free space, a larger limit, a deleted VM.
    "CAPACITY": CodeRow(Reaction.NO),
    "STORAGE_UNAVAILABLE": CodeRow(Reaction.LATER),
    "NODE_DOWN": CodeRow(Reaction.LATER, Outcome.UNSENT),
    "PVE_AUTH": CodeRow(Reaction.NO, Outcome.UNSENT),
    "PVE_PERMISSION": CodeRow(Reaction.NO),
    "PVE_TLS": CodeRow(Reaction.NO),
    "PVE_NO_QUORUM": CodeRow(Reaction.LATER),
    "PVE_TIMEOUT": CodeRow(Reaction.CHECK, Outcome.UNKNOWN),
    "PVE_UNREACHABLE": CodeRow(Reaction.LATER, Outcome.UNKNOWN),
    "PVE_CONFLICT": CodeRow(Reaction.LATER),
    # The codes of texts that no more specific rule matches: PVE_API_ERROR for an answer of Proxmox, TASK_FAILED for a
    # Proxmox task that has ended, and PLAYBOOK_FAILED for any other text.
    "PVE_API_ERROR": CodeRow(Reaction.ONCE, Outcome.UNKNOWN),
    "TASK_FAILED": CodeRow(Reaction.ONCE),
    "PLAYBOOK_FAILED": CodeRow(Reaction.ONCE, Outcome.UNKNOWN),
    "TASK_TIMEOUT": CodeRow(Reaction.CHECK, Outcome.UNKNOWN),
    "SHUTDOWN_TIMEOUT": CodeRow(Reaction.NO),
    "GUEST_NO_ADDRESS": CodeRow(Reaction.NO),
    "INVALID_REQUEST": CodeRow(Reaction.NO),
    "SECRET_MISSING": CodeRow(Reaction.NO),
    "UNSUPPORTED_ACTION": CodeRow(Reaction.NO),
    "RESULT_INVALID": CodeRow(Reaction.NO),
    "JOB_GONE": CodeRow(Reaction.NO),
    "JOB_CLAIMED_ELSEWHERE": CodeRow(Reaction.NO),
    "RESULT_REFUSED": CodeRow(Reaction.NO),
    "DEADLINE": CodeRow(Reaction.NO),
    "CANCELLED": CodeRow(Reaction.NO),
    "AGENT_RESTARTED": CodeRow(Reaction.CHECK, Outcome.UNKNOWN),
    "LEASE_LOST": CodeRow(Reaction.CHECK, Outcome.UNKNOWN),
    "QUARANTINED": CodeRow(Reaction.NO),
    "INTERNAL": CodeRow(Reaction.NO),
}


def reaction_to(code: str) -> Reaction:
    """Return the reaction to a failure with this code; NO for a code that is not in the table."""
    return TABLE[code].reaction if code in TABLE else Reaction.NO


def outcome_of(code: str) -> Outcome:
    """Return what is known about a request that failed with this code; UNKNOWN for a code that is not in the table."""
    return TABLE[code].outcome if code in TABLE else Outcome.UNKNOWN
