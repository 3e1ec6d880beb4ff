"""Finds violated promises in the recorded history of several machines on one database. Pure functions.

A history is a list of records, oldest first. Each has `kind`, `at` (seconds since 1970) and `node` (the machine):

- `machine`: `what` happened to the machine: started, killed, paused, resumed, cut or restored;
- `job`: a row of our table of jobs was changed: `job` (FulcrumCore's id), `service`, `status`, `epoch`, `run`,
  `crashes`, and `is_report_claimed`: the node has claimed the report, so that it alone sends it;
- `call`: FulcrumCore received a POST: `path`, `status` and `fault`, as in the simulator's history;
- `request`: Proxmox received a request that is not a GET: `method`, `path` and `params`;
- `run`: the processes of a run were seen to be `running`, `suspended` or `ended` (`state`);
- `facts`: the state of each side at the end, as `faults.history` has it.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from faults.history import GUEST_PATH, REPORT, Allowed, had_effect, violations
from smith_lab.simulator.maintenance import TIMEOUT_MESSAGE

from executor.model import MIN_CRASHES_FOR_PROBATION

Json = dict[str, Any]
#: The statuses of our row by the report that FulcrumCore accepted.
STATUS_OF_REPORT = {"complete": "completed", "fail": "failed"}
#: How long the processes of a run may exist after its machine continues from a suspension, until their guard ends them.
#: They may send no request in this time, as `_changes_without_ownership` checks.
RESUME_GRACE_S = 10.0
#: Limits of the time from the kill of a machine to the claim of its job by another one, with leases of 30 s.
MAX_MEDIAN_TAKEOVER_S, MAX_TAKEOVER_S = 37.0, 45.0


@dataclass(frozen=True, kw_only=True)
class Takeover:
    """A job that was interrupted by the kill of its machine, and claimed by another one."""

    job: str
    killed: str  #: the machine
    taken_by: str
    seconds: float  #: from the kill to the claim
    reap_s: float  #: from the kill until another machine has taken the job from its owner
    is_on_probation: bool  #: its machines were killed twice, so it was claimed by a machine without another job


def problems(history: Sequence[Json]) -> list[str]:
    """Return a text for each violation, which begins with the promise's id. `takeover_problems` are not among them."""
    facts = facts_of(history)
    if facts is None:
        return ["R1 lost: the history has no end"]
    timed_out = frozenset(job["id"] for job in facts["core"]["jobs"] if job.get("errorMessage") == TIMEOUT_MESSAGE)
    return [
        *violations(facts, Allowed(timed_out_jobs=timed_out)),
        *_find_unreported_jobs(history, facts, timed_out),
        *_two_guests_of_one_name(facts),
        *_overlapping_runs(history),
        *_changes_without_ownership(history, facts),
        *_stale_reports(history),
    ]


def facts_of(history: Sequence[Json]) -> Json | None:
    """Return the state of each side at the end with the recorded calls and requests; None without `facts`."""
    ends = [record for record in history if record["kind"] == "facts"]
    if not ends:
        return None
    return ends[-1] | {"calls": _of_kind(history, "call"), "requests": _of_kind(history, "request")}


def _of_kind(history: Sequence[Json], kind: str) -> list[Json]:
    return [record for record in history if record["kind"] == kind]


# --- lost and doubled jobs ----------------------------------------------------------------------------------------


def _find_unreported_jobs(history: Sequence[Json], facts: Json, timed_out: frozenset[str]) -> Iterator[str]:
    """Yield jobs without a row of ours, and jobs that have ended at FulcrumCore without an accepted report."""
    reported = {job_id for _call, job_id, _outcome in _accepted_reports(history)}
    stored = {row["fulcrum_id"] for row in facts["rows"]["jobs"]}
    for job in facts["core"]["jobs"]:
        if job["id"] not in stored:
            yield f"R1 lost: job {job['id']} of FulcrumCore is not in the database"
        if job["id"] not in reported | timed_out:
            yield f"R1 lost: no report of job {job['id']} was accepted"


def _accepted_reports(history: Sequence[Json]) -> Iterator[tuple[Json, str, str]]:
    """Yield each report that FulcrumCore has accepted: the call, the job's id, and `complete` or `fail`."""
    for call in _of_kind(history, "call"):
        if (match := REPORT.search(call["path"])) and had_effect(call):
            yield call, match[1], match[2]


def _two_guests_of_one_name(facts: Json) -> Iterator[str]:
    """Yield services with several guests, also without a marker: their names end in the start of the service's id."""
    names: dict[str, list[int]] = defaultdict(list)
    for guest in facts["guests"]:
        names[guest["name"]].append(guest["vmid"])
    for service in facts["core"]["services"]:
        vmids = [vmid for name, found in names.items() if name.endswith(service["id"][:8]) for vmid in found]
        if len(vmids) > 1:
            yield f"R2 doubled: guests {vmids} have the name of service {service['id']}"


# --- one owner of a VM ----------------------------------------------------------------------------------------------


def _overlapping_runs(history: Sequence[Json]) -> Iterator[str]:
    """Yield pairs of runs of one service that both had a process, not suspended, at the same time."""
    service_of = {record["run"]: record["service"] for record in _of_kind(history, "job") if record["run"]}
    by_service: dict[str, list[tuple[str, float, float]]] = defaultdict(list)
    for run, started_at, ended_at in _running_times(history):
        if run in service_of:
            by_service[service_of[run]].append((run, started_at, ended_at))
    for service, times in by_service.items():
        for (run, started_at, ended_at), (other, other_started_at, other_ended_at) in combinations(sorted(times), 2):
            if run != other and started_at < other_ended_at and other_started_at < ended_at:
                yield f"R2 overlapping runs on one VM: {run} and {other} of service {service}"


def _running_times(history: Sequence[Json]) -> Iterator[tuple[str, float, float]]:
    """Yield each period in which a run was running: the run, begin and end.

    After a suspension, a period begins RESUME_GRACE_S later than the machine continues."""
    began: dict[str, float] = {}
    suspended: set[str] = set()
    for record in _of_kind(history, "run"):
        run, at = record["run"], record["at"]
        if record["state"] == "running":
            began.setdefault(run, at + RESUME_GRACE_S if run in suspended else at)
        elif (started_at := began.pop(run, at)) < at:
            yield run, started_at, at
        suspended |= {run} if record["state"] == "suspended" else set()
    for run, started_at in began.items():
        yield run, started_at, float("inf")


def _changes_without_ownership(history: Sequence[Json], facts: Json) -> Iterator[str]:
    """Yield requests that change a VM and come from a machine that does not own the service's job."""
    service_of = {row["vmid"]: row["service_id"] for row in facts["rows"]["mappings"]}
    owned: dict[str, Json] = {}  # the last change of a job of each service
    for record in history:
        if record["kind"] == "job":
            owned[record["service"]] = record
        elif record["kind"] == "request" and (service := service_of.get(_vmid_of(record))):
            last = owned.get(service, {})
            if last.get("status") != "processing" or last["node"] != record["node"]:
                owner = f"{last.get('status')} ({last.get('node')})" if last else "unknown"
                yield (
                    f"R2 overlapping: {record['node']} sent {record['method']} {record['path']} at {record['at']:.3f}, "
                    f"when the job of service {service} was {owner}"
                )


def _vmid_of(request: Json) -> int:
    """Return the VMID that a request changes; 0 if there is none."""
    if request["path"].endswith("/clone"):
        return int(request["params"].get("newid", 0))
    match = GUEST_PATH.search(request["path"])
    return int(match[1]) if match else 0


# --- reports --------------------------------------------------------------------------------------------------------


def _stale_reports(history: Sequence[Json]) -> Iterator[str]:
    """Yield accepted reports of a result that was not the job's, or from a machine without the right to send it.

    A machine has the right after it has claimed the report of the job's present epoch.
    """
    last_change_by_job: dict[str, Json] = {}  # the last change of each job
    senders: dict[tuple[str, int], set[str]] = defaultdict(set)  # by job and epoch
    for record in history:
        if record["kind"] == "job":
            last_change_by_job[record["job"]] = record
            if record["is_report_claimed"]:
                senders[record["job"], record["epoch"]].add(record["node"])
        elif record["kind"] == "call":
            for _call, job_id, outcome in _accepted_reports([record]):
                yield from _problem_of_report(record, job_id, outcome, last_change_by_job.get(job_id), senders)


def _problem_of_report(
    call: Json, job_id: str, outcome: str, job: Json | None, senders: dict[tuple[str, int], set[str]]
) -> Iterator[str]:
    if job is None or job["status"] != STATUS_OF_REPORT[outcome]:
        status = job["status"] if job else "unknown"
        yield f"R3 stale report: {call['node']} reported {outcome} of job {job_id}, which was {status}"
    elif call["node"] not in senders[job_id, job["epoch"]]:
        yield f"R3 stale report: {call['node']} reported job {job_id} and had not claimed the report"


# --- takeovers ------------------------------------------------------------------------------------------------------


def takeovers(history: Sequence[Json]) -> list[Takeover]:
    """Return the takeover of each job whose machine was killed. A job that its own machine continues has none."""
    found = []
    for number, kill in enumerate(history):
        if kill["kind"] == "machine" and kill["what"] == "killed":
            found += _takeovers_after(kill, history[:number], history[number + 1 :])
    return found


def _takeovers_after(kill: Json, before: Sequence[Json], after: Sequence[Json]) -> Iterator[Takeover]:
    last_change_by_job = {record["job"]: record for record in _of_kind(before, "job")}
    owned = {
        job
        for job, last in last_change_by_job.items()
        if last["status"] == "processing" and last["node"] == kill["node"]
    }
    reaped_at: dict[str, float] = {}
    for record in _of_kind(after, "job"):
        if record["job"] not in owned:
            continue
        reaped_at.setdefault(record["job"], record["at"])
        if record["status"] == "pending":
            continue
        owned.remove(record["job"])
        if record["node"] != kill["node"]:
            yield Takeover(
                job=record["job"],
                killed=kill["node"],
                taken_by=record["node"],
                seconds=record["at"] - kill["at"],
                reap_s=reaped_at[record["job"]] - kill["at"],
                is_on_probation=record["crashes"] >= MIN_CRASHES_FOR_PROBATION,
            )


def takeover_problems(found: Sequence[Takeover]) -> list[str]:
    """Return a text if no job was taken over, and for each limit that the takeovers exceed.

    A job on probation waits until a machine has no other job. So only the time until it was reaped is limited.
    """
    measured = [item.seconds for item in found if not item.is_on_probation]
    texts = [] if measured else ["slow takeover: no job was taken over"]
    if measured and (median := statistics.median(measured)) > MAX_MEDIAN_TAKEOVER_S:
        texts.append(f"slow takeover: the median is {median:.1f} s, more than {MAX_MEDIAN_TAKEOVER_S:.0f} s")
    for item in found:
        seconds, what = (item.reap_s, "reaped") if item.is_on_probation else (item.seconds, "claimed")
        if seconds > MAX_TAKEOVER_S:
            texts.append(
                f"slow takeover: job {item.job} of {item.killed} was {what} after {seconds:.1f} s for {item.taken_by}, "
                f"more than {MAX_TAKEOVER_S:.0f} s"
            )
    return texts
