# SPDX-License-Identifier: Apache-2.0
"""Says for each error code whether the job is retried, and whether the change may have been made despite the error.

The executor reads in the table whether to retry a job. An action plugin reads in the table whether a change may have
been made although it failed with an error. If so, the plugin looks up the VM. docs/errors.md shows the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reaction(StrEnum):
    """Says whether, and how, the agent retries a failed job."""

    NEVER = "no"  #: not retried: the same request would fail in the same way, or an operator must act
    LATER = "later"  #: retried after a backoff: nothing was changed, or the change can safely be repeated
    CHECK_FIRST = "check"  #: retried after a backoff; the change may have been made, so the playbook checks what exists
    NEW_VMID = "new_id"  #: retried with another VMID; not retried if the service already has a VM
    ONCE = "once"  #: retried only once, after a backoff; the playbook checks what exists


class Outcome(StrEnum):
    """Says whether the change that failed with an error code may have been made.

    KNOWN: it is certain that the change has failed.

    An Ansible module may send several requests to Proxmox for one change. PARTLY_KNOWN: the request that
    failed changed nothing, but an earlier request of the same module may have made a part of the change.
    """

    KNOWN = "known"  #: Proxmox refused the request, or the Proxmox task failed: the plugin fails at once
    UNKNOWN = "unknown"  #: the change may have been made: the plugin looks up the VM, and fails if the VM is unchanged
    PARTLY_KNOWN = "partly_known"  #: this request changed nothing, an earlier one may have: the plugin looks up the VM


@dataclass(frozen=True)
class ReactionAndOutcome:
    """The row of an error code: the reaction to it, and the outcome of the change that failed with it."""

    reaction: Reaction
    outcome: Outcome = Outcome.KNOWN


#: The row of each error code. The keys are the members of `error_codes.ErrorCode`.
TABLE: dict[str, ReactionAndOutcome] = {
    "VM_NOT_FOUND": ReactionAndOutcome(Reaction.NEVER),
    "VM_NOT_RUNNING": ReactionAndOutcome(Reaction.NEVER),
    "VM_STATE": ReactionAndOutcome(Reaction.NEVER),
    "VM_IDENTITY_MISMATCH": ReactionAndOutcome(Reaction.NEVER),
    "VM_PROTECTED": ReactionAndOutcome(Reaction.NEVER),
    "VM_HALF_DESTROYED": ReactionAndOutcome(Reaction.NEVER),
    "VM_LOCKED": ReactionAndOutcome(Reaction.LATER),
    # An earlier attempt, or an earlier request of the same module, may have made the VM.
    "VM_ID_TAKEN": ReactionAndOutcome(Reaction.NEW_VMID, Outcome.UNKNOWN),
    "NOT_FOUND": ReactionAndOutcome(Reaction.NEVER),
    # An operator must add space or raise the limit, or the tenant must delete a VM.
    "CAPACITY": ReactionAndOutcome(Reaction.NEVER),
    "STORAGE_UNAVAILABLE": ReactionAndOutcome(Reaction.LATER),
    "NODE_DOWN": ReactionAndOutcome(Reaction.LATER, Outcome.PARTLY_KNOWN),
    "PVE_AUTH": ReactionAndOutcome(Reaction.NEVER, Outcome.PARTLY_KNOWN),
    "PVE_PERMISSION": ReactionAndOutcome(Reaction.NEVER),
    "PVE_TLS": ReactionAndOutcome(Reaction.NEVER),
    "PVE_NO_QUORUM": ReactionAndOutcome(Reaction.LATER),
    "PVE_TIMEOUT": ReactionAndOutcome(Reaction.CHECK_FIRST, Outcome.UNKNOWN),
    "PVE_UNREACHABLE": ReactionAndOutcome(Reaction.LATER, Outcome.UNKNOWN),
    "PVE_CONFLICT": ReactionAndOutcome(Reaction.LATER),
    # The next three codes are for failures that no other code describes: PVE_API_ERROR for an error answer of Proxmox,
    # TASK_FAILED for a failed Proxmox task, and PLAYBOOK_FAILED for any other failure.
    "PVE_API_ERROR": ReactionAndOutcome(Reaction.ONCE, Outcome.UNKNOWN),
    "TASK_FAILED": ReactionAndOutcome(Reaction.ONCE),
    "PLAYBOOK_FAILED": ReactionAndOutcome(Reaction.ONCE, Outcome.UNKNOWN),
    "TASK_TIMEOUT": ReactionAndOutcome(Reaction.CHECK_FIRST, Outcome.UNKNOWN),
    "SHUTDOWN_TIMEOUT": ReactionAndOutcome(Reaction.NEVER),
    "GUEST_NO_ADDRESS": ReactionAndOutcome(Reaction.NEVER),
    "INVALID_REQUEST": ReactionAndOutcome(Reaction.NEVER),
    "SECRET_MISSING": ReactionAndOutcome(Reaction.NEVER),
    "UNSUPPORTED_ACTION": ReactionAndOutcome(Reaction.NEVER),
    "RESULT_INVALID": ReactionAndOutcome(Reaction.NEVER),
    "JOB_GONE": ReactionAndOutcome(Reaction.NEVER),
    "JOB_CLAIMED_ELSEWHERE": ReactionAndOutcome(Reaction.NEVER),
    "RESULT_REFUSED": ReactionAndOutcome(Reaction.NEVER),
    "DEADLINE": ReactionAndOutcome(Reaction.NEVER),
    "CANCELLED": ReactionAndOutcome(Reaction.NEVER),
    "AGENT_RESTARTED": ReactionAndOutcome(Reaction.CHECK_FIRST, Outcome.UNKNOWN),
    "LEASE_LOST": ReactionAndOutcome(Reaction.CHECK_FIRST, Outcome.UNKNOWN),
    # The agent crashed three times while it ran the job.
    "QUARANTINED": ReactionAndOutcome(Reaction.NEVER),
    "INTERNAL": ReactionAndOutcome(Reaction.NEVER),
}


def is_error_code(word: str) -> bool:
    """Return True if the word is an error code."""
    return word in TABLE


def reaction_to(code: str) -> Reaction:
    """Return the reaction to a failure with this code; NEVER for a code that is not in the table."""
    return TABLE[code].reaction if code in TABLE else Reaction.NEVER


def outcome_of(code: str) -> Outcome:
    """Return the outcome of a change that failed with this code; UNKNOWN for a code that is not in the table."""
    return TABLE[code].outcome if code in TABLE else Outcome.UNKNOWN
