# SPDX-License-Identifier: Apache-2.0
"""Defines the error codes: the first word of the message of a failed job or of a failed action plugin."""

from __future__ import annotations

from enum import StrEnum


class ErrorCode(StrEnum):
    """The error code of a failed job. It is the first word of the error message that FulcrumCore receives.

    FulcrumCore matches the code with regular expressions of the service type to choose the service's next status. So a
    code is never renamed.
    """

    VM_NOT_FOUND = "VM_NOT_FOUND"  #: it is certain that the service's VM does not exist
    VM_NOT_RUNNING = "VM_NOT_RUNNING"  #: the action needs a running VM
    VM_STATE = "VM_STATE"  #: the VM's state forbids the action
    VM_IDENTITY_MISMATCH = "VM_IDENTITY_MISMATCH"  #: the VM may belong to another service; nothing was changed
    VM_PROTECTED = "VM_PROTECTED"  #: a protection of the VM or the template forbids the action
    VM_HALF_DESTROYED = "VM_HALF_DESTROYED"  #: a deletion was interrupted: an operator must destroy the VM
    VM_LOCKED = "VM_LOCKED"  #: Proxmox holds a lock on the VM or a storage
    VM_ID_TAKEN = "VM_ID_TAKEN"  #: the VMID belongs to another guest
    NOT_FOUND = "NOT_FOUND"  #: the template, node, pool, storage or snapshot does not exist
    CAPACITY = "CAPACITY"  #: no disk space, memory or VMID is left, or the customer has reached a limit
    STORAGE_UNAVAILABLE = "STORAGE_UNAVAILABLE"  #: the storage is offline, disabled or not accessible
    NODE_DOWN = "NODE_DOWN"  #: the node does not answer
    PVE_AUTH = "PVE_AUTH"  #: Proxmox refuses the credentials
    PVE_PERMISSION = "PVE_PERMISSION"  #: the token lacks a privilege
    PVE_TLS = "PVE_TLS"  #: Proxmox's certificate could not be verified
    PVE_NO_QUORUM = "PVE_NO_QUORUM"  #: the cluster has no quorum
    PVE_TIMEOUT = "PVE_TIMEOUT"  #: Proxmox did not answer in time, or cannot say how the Proxmox task ended
    PVE_UNREACHABLE = "PVE_UNREACHABLE"  #: the agent cannot connect to Proxmox
    PVE_CONFLICT = "PVE_CONFLICT"  #: another client changed the VM at the same time
    PVE_API_ERROR = "PVE_API_ERROR"  #: Proxmox answered with an error that has no other code
    TASK_FAILED = "TASK_FAILED"  #: the Proxmox task ended with an error
    TASK_TIMEOUT = "TASK_TIMEOUT"  #: the Proxmox task did not end in time
    SHUTDOWN_TIMEOUT = "SHUTDOWN_TIMEOUT"  #: the guest did not shut down in time
    GUEST_NO_ADDRESS = "GUEST_NO_ADDRESS"  #: the guest agent reported no IP address in time
    INVALID_REQUEST = "INVALID_REQUEST"  #: the job's properties are invalid
    SECRET_MISSING = "SECRET_MISSING"  # noqa: S105  #: FulcrumCore's vault no longer has a secret of the job
    UNSUPPORTED_ACTION = "UNSUPPORTED_ACTION"  #: there is no playbook for the action
    PLAYBOOK_FAILED = "PLAYBOOK_FAILED"  #: the playbook failed for another reason
    RESULT_INVALID = "RESULT_INVALID"  #: the playbook set no valid `vm_result`
    JOB_GONE = "JOB_GONE"  #: the job was deleted in FulcrumCore, or belongs to another agent
    JOB_CLAIMED_ELSEWHERE = "JOB_CLAIMED_ELSEWHERE"  #: another agent process with the same token has claimed the job
    RESULT_REFUSED = "RESULT_REFUSED"  #: FulcrumCore does not accept the job's result; the agent's log has the reason
    DEADLINE = "DEADLINE"  #: the job cannot end within FulcrumCore's time limit
    CANCELLED = "CANCELLED"  #: an operator cancelled the job
    AGENT_RESTARTED = "AGENT_RESTARTED"  #: no longer used: after a restart, the agent runs the job again
    LEASE_LOST = "LEASE_LOST"  #: the agent did not renew its leases in time, so the run was ended
    QUARANTINED = "QUARANTINED"  #: the agent crashed three times while it ran the job
    INTERNAL = "INTERNAL"  #: a defect of Agent Smith
