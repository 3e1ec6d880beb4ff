"""Finds violated promises (docs/promises.md) in the recorded state and history of all sides. Pure functions.

`facts` contains FulcrumCore's services and jobs, each POST that it received, our job and mapping rows, Proxmox's
guests, each request that Proxmox received, and the VMIDs of other owners.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
REPORT = re.compile(r"/jobs/([0-9a-f-]{36})/(complete|fail)$")
#: Injected faults with which a POST arrives at FulcrumCore and has no effect.
FAULTS_WITHOUT_EFFECT = frozenset({"status", "html", "empty", "wrong_json", "drop_before"})
GUEST_PATH = re.compile(r"/nodes/[^/]+/(?:qemu|lxc)/(\d+)(?:/|$)")
MARKER = re.compile(r"^smith-uid=([0-9a-f-]{36})\s*$", re.MULTILINE)
TEMPLATES = (9000, 9001)
#: The power state in Proxmox by the status of FulcrumCore's service. Other statuses imply none.
POWER_STATE_BY_STATUS = {"Started": "running", "Stopped": "stopped"}


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """The services and jobs at which a test's fault has caused differences. These are no violations."""

    lost_services: frozenset[str] = frozenset()  #: their VMs were removed, or their VMIDs reused
    timed_out_jobs: frozenset[str] = frozenset()  #: FulcrumCore timed them out: its outcome and ours may differ


def violations(facts: Json, allowed: Allowed = Allowed()) -> list[str]:
    """Return a text for each violation, which begins with the promise's id."""
    return [
        *_find_lost_jobs(facts),
        *_find_duplicates(facts, allowed),
        *_find_contradictions(facts, allowed),
        *_find_changed_foreign_vms(facts),
    ]


# --- R1 -----------------------------------------------------------------------------------------------------------


def _find_lost_jobs(facts: Json) -> Iterator[str]:
    """Yield jobs that have not ended at FulcrumCore, or are neither reported nor explained in our rows."""
    rows = {row["fulcrum_id"]: row for row in facts["rows"]["jobs"]}
    for job in facts["core"]["jobs"]:
        if job["status"] not in ("Completed", "Failed"):
            yield f"R1 lost: FulcrumCore's job {job['id']} ({job['action']}) is still {job['status']}"
    for row in rows.values():
        if row["status"] not in ("completed", "failed") or row["report_state"] == "due":
            yield f"R1 lost: job {row['id']} is {row['status']}, its report {row['report_state']}"
        elif row["report_state"] in ("overtaken", "abandoned") and not (row["report_note"] or row["error_message"]):
            yield f"R1 lost: job {row['id']} is {row['report_state']} without a reason"


# --- R2 -----------------------------------------------------------------------------------------------------------


def _find_duplicates(facts: Json, allowed: Allowed) -> Iterator[str]:
    """Yield services with several VMs, our VMs without a mapping, mappings without a VM, and double mappings."""
    ours = [guest for guest in facts["guests"] if guest["vmid"] not in (*TEMPLATES, *facts["foreign_vmids"])]
    live = [row for row in facts["rows"]["mappings"] if row["state"] in ("active", "reserved")]
    for service_id, vmids in _vmids_by_marker(ours).items():
        if len(vmids) > 1:
            yield f"R2 doubled: service {service_id} has VMs {vmids}"
    existing, mapped = {guest["vmid"] for guest in ours}, {row["vmid"] for row in live}
    for guest in ours:
        if guest["vmid"] not in mapped:
            yield f"R2 doubled: VM {guest['vmid']} ({guest['name']}) is in no mapping"
    for row in live:
        if row["state"] == "active" and row["vmid"] not in existing and row["service_id"] not in allowed.lost_services:
            yield f"R2 doubled: service {row['service_id']} is mapped to {row['vmid']}, which does not exist"
    for what in ("vmid", "service_id"):
        for value, count in Counter(row[what] for row in live).items():
            if count > 1:
                yield f"R2 doubled: {count} live mappings with {what} {value}"


def _vmids_by_marker(guests: list[Json]) -> dict[str, list[int]]:
    """Return, by service id, the VMIDs of the guests with the marker of the service."""
    found: dict[str, list[int]] = defaultdict(list)
    for guest in guests:
        for marker in MARKER.findall(str(guest["config"].get("description", ""))):
            found[marker].append(guest["vmid"])
    return found


# --- R3 -----------------------------------------------------------------------------------------------------------


def _find_contradictions(facts: Json, allowed: Allowed) -> Iterator[str]:
    """Yield jobs reported with two outcomes, and those whose outcome differs between the three sides."""
    outcomes_of_job: dict[str, list[str]] = defaultdict(list)
    for call in facts["calls"]:
        if (match := REPORT.search(call["path"])) and had_effect(call):
            outcomes_of_job[match[1]].append(match[2])
    for job_id, outcomes in outcomes_of_job.items():
        if len(set(outcomes)) > 1:
            yield f"R3 contradictory: job {job_id} was reported as {outcomes}"
    rows = {row["fulcrum_id"]: row for row in facts["rows"]["jobs"]}
    for job in facts["core"]["jobs"]:
        row = rows.get(job["id"])
        if row is None or (job["id"] in allowed.timed_out_jobs and row["report_state"] in ("overtaken", "abandoned")):
            continue
        if row["status"] != job["status"].lower():
            yield (
                f"R3 contradictory: job {job['id']} ({job['action']}) is {job['status']} at FulcrumCore and "
                f"{row['status']} here (report {row['report_state']}: {row['report_note']})"
            )
    yield from _find_wrong_power_states(facts, allowed)


def had_effect(call: Json) -> bool:
    """Return whether FulcrumCore has processed a POST, also if its answer was lost."""
    if call["status"] is None:  # the response was lost
        return call["fault"] in ("drop_after", "truncate")
    return 200 <= call["status"] < 300 and call["fault"] not in FAULTS_WITHOUT_EFFECT


def _find_wrong_power_states(facts: Json, allowed: Allowed) -> Iterator[str]:
    """Yield services whose jobs all succeeded and whose VM is not in the state that FulcrumCore shows."""
    failed = {job["serviceId"] for job in facts["core"]["jobs"] if job["status"] != "Completed"}
    vmid_of = {row["service_id"]: row["vmid"] for row in facts["rows"]["mappings"] if row["state"] == "active"}
    guests = {guest["vmid"]: guest for guest in facts["guests"]}
    for service in facts["core"]["services"]:
        if service["id"] in failed | allowed.lost_services:
            continue
        guest = guests.get(vmid_of.get(service["id"], 0))
        wanted = POWER_STATE_BY_STATUS.get(service["status"])
        if wanted and (guest is None or guest["status"] != wanted):
            shown = guest["status"] if guest else "missing"
            yield f"R3 contradictory: service {service['name']} is {service['status']}, its VM {shown}"
        if service["status"] == "Deleted" and guest is not None:
            yield f"R3 contradictory: service {service['name']} is Deleted, but VM {guest['vmid']} exists"
        if wanted and not str(service.get("agentInstanceId", "")).endswith(f"/{vmid_of.get(service['id'])}"):
            yield f"R3 contradictory: service {service['name']} has instance {service.get('agentInstanceId')}"


# --- R4 -----------------------------------------------------------------------------------------------------------


def _find_changed_foreign_vms(facts: Json) -> Iterator[str]:
    """Yield requests that change a VM of another owner, and such VMs that have changed."""
    guests = {guest["vmid"]: guest for guest in facts["guests"]}
    for request in facts["requests"]:
        match = GUEST_PATH.search(request["path"])
        vmid = int(match[1]) if match else 0
        is_clone = request["path"].endswith("/clone")
        if request["method"] != "GET" and vmid in (*facts["foreign_vmids"], *TEMPLATES) and not is_clone:
            # Requests before a VMID is reused are allowed. They are not in the log: the test empties it at the reuse.
            yield f"R4 the wrong VM: {request['method']} {request['path']}"
    for vmid in facts["foreign_vmids"]:
        guest = guests.get(vmid)
        if guest is None or guest["status"] != "running" or "smith-uid" in str(guest["config"]):
            yield f"R4 the wrong VM: foreign VM {vmid} has changed"
