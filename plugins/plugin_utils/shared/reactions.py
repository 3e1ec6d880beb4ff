# SPDX-License-Identifier: Apache-2.0
"""Defines for each error code whether the agent retries the job, and whether the failed change may have been made.

The executor reads in the table whether to retry a job. An action plugin reads in the table whether a failed change may
have been made, so that it must look up the VM. docs/errors.md shows the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reaction(StrEnum):
    """Says whether, and how, the agent retries a failed job."""

    NEVER = "no"  #: not retried: the same request would fail in the same way, or an operator must act
    LATER = "later"  #: retried after a backoff: nothing was changed, or the change can safely be repeated
    CHECK_FIRST = "check"  #: retried; the change may have been made, so the idempotent playbook checks what exists
    NEW_VMID = "new_id"  #: retried with another VMID, unless the service already has a VM
    ONCE = "once"  #: retried once; the idempotent playbook first checks what exists


class Outcome(StrEnum):
    """Says whether a request to Proxmox that failed with an error code may have made its change."""

    KNOWN = "known"  #: Proxmox refused the request, or the Proxmox task failed: the plugin fails at once
    UNKNOWN = "unknown"  #: the change may have been made: the plugin looks up the VM, and fails if the VM is unchanged
    UNSENT = "unsent"  #: this request changed nothing, but earlier requests may have: the plugin looks up the VM


@dataclass(frozen=True)
class CodeRow:
    """The row of an error code: the reaction to it, and the outcome of the request that failed with it."""

    reaction: Reaction
    outcome: Outcome = Outcome.KNOWN


#: The row of each error code. The keys are the members of `error_codes.ErrorCode`.
TABLE: dict[str, CodeRow] = {
    "VM_NOT_FOUND": CodeRow(Reaction.NEVER),
    "VM_NOT_RUNNING": CodeRow(Reaction.NEVER),
    "VM_STATE": CodeRow(Reaction.NEVER),
    "VM_IDENTITY_MISMATCH": CodeRow(Reaction.NEVER),
    "VM_PROTECTED": CodeRow(Reaction.NEVER),
    "VM_HALF_DESTROYED": CodeRow(Reaction.NEVER),
    "VM_LOCKED": CodeRow(Reaction.LATER),
    # An earlier attempt, or an earlier request of the same module, may have made the VM.
    "VM_ID_TAKEN": CodeRow(Reaction.NEW_VMID, Outcome.UNKNOWN),
    "NOT_FOUND": CodeRow(Reaction.NEVER),
    # An operator or the tenant must act: free space, a larger limit, a deleted VM.
    "CAPACITY": CodeRow(Reaction.NEVER),
    "STORAGE_UNAVAILABLE": CodeRow(Reaction.LATER),
    "NODE_DOWN": CodeRow(Reaction.LATER, Outcome.UNSENT),
    "PVE_AUTH": CodeRow(Reaction.NEVER, Outcome.UNSENT),
    "PVE_PERMISSION": CodeRow(Reaction.NEVER),
    "PVE_TLS": CodeRow(Reaction.NEVER),
    "PVE_NO_QUORUM": CodeRow(Reaction.LATER),
    "PVE_TIMEOUT": CodeRow(Reaction.CHECK_FIRST, Outcome.UNKNOWN),
    "PVE_UNREACHABLE": CodeRow(Reaction.LATER, Outcome.UNKNOWN),
    "PVE_CONFLICT": CodeRow(Reaction.LATER),
    # The codes of texts that no more specific rule matches: PVE_API_ERROR for an answer of Proxmox, TASK_FAILED for a
    # Proxmox task that has ended, and PLAYBOOK_FAILED for any other text.
    "PVE_API_ERROR": CodeRow(Reaction.ONCE, Outcome.UNKNOWN),
    "TASK_FAILED": CodeRow(Reaction.ONCE),
    "PLAYBOOK_FAILED": CodeRow(Reaction.ONCE, Outcome.UNKNOWN),
    "TASK_TIMEOUT": CodeRow(Reaction.CHECK_FIRST, Outcome.UNKNOWN),
    "SHUTDOWN_TIMEOUT": CodeRow(Reaction.NEVER),
    "GUEST_NO_ADDRESS": CodeRow(Reaction.NEVER),
    "INVALID_REQUEST": CodeRow(Reaction.NEVER),
    "SECRET_MISSING": CodeRow(Reaction.NEVER),
    "UNSUPPORTED_ACTION": CodeRow(Reaction.NEVER),
    "RESULT_INVALID": CodeRow(Reaction.NEVER),
    "JOB_GONE": CodeRow(Reaction.NEVER),
    "JOB_CLAIMED_ELSEWHERE": CodeRow(Reaction.NEVER),
    "RESULT_REFUSED": CodeRow(Reaction.NEVER),
    "DEADLINE": CodeRow(Reaction.NEVER),
    "CANCELLED": CodeRow(Reaction.NEVER),
    "AGENT_RESTARTED": CodeRow(Reaction.CHECK_FIRST, Outcome.UNKNOWN),
    "LEASE_LOST": CodeRow(Reaction.CHECK_FIRST, Outcome.UNKNOWN),
    "QUARANTINED": CodeRow(Reaction.NEVER),
    "INTERNAL": CodeRow(Reaction.NEVER),
}


def reaction_to(code: str) -> Reaction:
    """Return the reaction to a failure with this code; NEVER for a code that is not in the table."""
    return TABLE[code].reaction if code in TABLE else Reaction.NEVER


def outcome_of(code: str) -> Outcome:
    """Return the outcome of a request that failed with this code; UNKNOWN for a code that is not in the table."""
    return TABLE[code].outcome if code in TABLE else Outcome.UNKNOWN
