"""Decides what a report contains, and how the reporter reacts when FulcrumCore refuses the report. Pure functions.

A report is the request that sends the result of an ended job to FulcrumCore. A settled report is not sent again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from enum import StrEnum
from typing import Any

from executor.database.tables.jobs import Job
from executor.model import JobResult

#: Keys of a run's result that are sent as `agentInstanceData`. Each report contains all keys that have a value, because
#: FulcrumCore replaces the whole data of the previous report.
INSTANCE_DATA_KEYS = (
    "vmid",
    "node",
    "name",
    "mac_address",
    "ip_addresses",
    "reboot_required",
    "snapshot",
    "backup",
    "left_out_properties",  # the names of properties whose secrets FulcrumCore's vault no longer has
)


def add_left_out_property_names(result: JobResult, names: Iterable[str]) -> JobResult:
    """Return the result with the names of left-out properties added.

    The run did not get these properties, because FulcrumCore's vault no longer has their secrets.
    """
    unique_names = sorted(set(names))
    return replace(result, vm=result.vm | {"left_out_properties": unique_names}) if unique_names else result


class RefusalReaction(StrEnum):
    """Says what the reporter does after FulcrumCore has refused a report."""

    CLAIM_AND_SEND = "claim_and_send"  #: FulcrumCore has lost the claim: claim the job again, then send the report
    #: FulcrumCore refuses the report's contents. If the report says that the job succeeded, send it again at
    #: once, without properties. If the report says that the job failed, send it again unchanged after a backoff.
    SEND_WITHOUT_PROPERTIES = "send_without_properties"
    SETTLE_AS_REPORTED = "settle_as_reported"  #: FulcrumCore had accepted an earlier report of this result
    #: FulcrumCore itself has ended the job, and never accepts the result.
    SETTLE_AS_ENDED_BY_FULCRUM = "settle_as_ended_by_fulcrum"


def reaction_to_refusal(
    *, is_completion: bool, error_message: str | None, status_at_fulcrum: str | None, error_at_fulcrum: str | None
) -> RefusalReaction:
    """Return how the reporter reacts to a refused report. The job's status at FulcrumCore determines the reaction.

    `is_completion` says whether the report completes the job; otherwise it fails the job with `error_message`. After
    the job timeout, FulcrumCore itself fails a job, with an error message other than the agent's. FulcrumCore completes
    a job only when this agent reports the job as completed.
    """
    if status_at_fulcrum == "Pending":
        return RefusalReaction.CLAIM_AND_SEND
    if status_at_fulcrum == "Processing":
        return RefusalReaction.SEND_WITHOUT_PROPERTIES
    if is_completion:
        is_same_result = status_at_fulcrum == "Completed"
    else:
        is_same_result = status_at_fulcrum == "Failed" and error_at_fulcrum == error_message
    return RefusalReaction.SETTLE_AS_REPORTED if is_same_result else RefusalReaction.SETTLE_AS_ENDED_BY_FULCRUM


def completion_arguments(job: Job, agent_id: str) -> dict[str, Any]:
    """Return the keyword arguments of `FulcrumClient.complete_job`, except the job's id.

    The report of an update contains no properties: FulcrumCore sets the service's properties to the job's params, and
    would discard the reported properties. The instance id contains the agent's id, because an instance id must be
    unique in FulcrumCore's whole database.
    """
    vm = job.result or {}
    if vm.get("status") == "absent" or "vmid" not in vm:  # no VM exists, for example after a delete
        return {}
    if job.action == "delete":  # the VM may stay for a grace period, but the deleted service must get no instance id
        data = {key: vm[key] for key in ("vmid", "node", "name", "delete_at") if vm.get(key)}
        return {"agent_instance_data": data}
    data = {key: vm[key] for key in INSTANCE_DATA_KEYS if vm.get(key) not in (None, "", [])}
    arguments: dict[str, Any] = {"agent_instance_id": f"{agent_id}/{vm['vmid']}", "agent_instance_data": data}
    if job.action != "update":
        properties = {
            "vmid": vm["vmid"],
            "node": vm.get("node"),
            "macAddress": vm.get("mac_address"),
            "ipAddresses": vm.get("ip_addresses"),
            "lastSnapshot": vm.get("snapshot"),
        }
        arguments["properties"] = {name: value for name, value in properties.items() if value}
    return arguments
