"""The checker of the trial with several machines: it accepts a correct history, and refuses each altered one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults.many_machines import recorder
from faults.many_machines.__main__ import NO_HISTORY, main
from faults.many_machines.check import RESUME_GRACE_S, problems, takeover_problems, takeovers
from faults.many_machines.report import make_report

Json = dict[str, Any]
SERVICE = "0f7e2c1a-1111-4222-8333-944455556666"
OTHER_SERVICE = "1a7e2c1a-1111-4222-8333-944455556666"
JOB = "5a3f0f8d-4119-4a9e-aae3-9357768e56fb"
OTHER_JOB = "6b3f0f8d-4119-4a9e-aae3-9357768e56fb"
COMPLETE_PATH = f"/api/v1/jobs/{JOB}/complete"


# Each of these functions returns one record of a history, as faults/many_machines/check.py describes them.


def job(at: float, node: str, status: str, epoch: int, run: str | None = None, **others: Any) -> Json:
    values = {"job": JOB, "service": SERVICE, "status": status, "epoch": epoch, "run": run, "crashes": epoch // 2}
    return {"kind": "job", "at": at, "node": node, "is_report_claimed": False, **values, **others}


def run(at: float, node: str, name: str, state: str) -> Json:
    return {"kind": "run", "at": at, "node": node, "run": name, "state": state}


def request(at: float, node: str, path: str, **params: Any) -> Json:
    return {"kind": "request", "at": at, "node": node, "method": "POST", "path": path, "params": params}


def machine(at: float, node: str, what: str) -> Json:
    return {"kind": "machine", "at": at, "node": node, "what": what, "servers": []}


def call(at: float, node: str, path: str = COMPLETE_PATH, status: int | None = 204) -> Json:
    return {"kind": "call", "at": at, "node": node, "method": "POST", "path": path, "status": status, "fault": None}


def make_final_facts() -> Json:
    """Return the state at the end: the create of one service is completed, and its VM exists."""
    service = {"id": SERVICE, "name": "web", "status": "Stopped", "agentInstanceId": "agent/500"}
    row = {"id": 1, "fulcrum_id": JOB, "status": "completed", "report_state": "reported"}
    return {
        "kind": "facts",
        "at": 160.0,
        "node": None,
        "core": {
            "services": [service],
            "jobs": [{"id": JOB, "serviceId": SERVICE, "action": "create", "status": "Completed"}],
        },
        "rows": {
            "jobs": [row | {"report_note": None, "error_message": None}],
            "mappings": [{"service_id": SERVICE, "vmid": 500, "state": "active"}],
        },
        "guests": [guest(500)],
        "foreign_vmids": [],
    }


def guest(vmid: int, marker: str = SERVICE, name: str = "web-0f7e2c1a") -> Json:
    return {"vmid": vmid, "name": name, "status": "stopped", "config": {"description": f"smith-uid={marker}"}}


def correct_history() -> list[Json]:
    """Return the history of one create whose machine is killed: another machine completes it."""
    return [
        machine(80, "node-1", "started"),
        job(90, "node-1", "pending", 0),
        job(91, "node-1", "processing", 1),
        job(92, "node-1", "processing", 1, "create-1"),
        run(93, "node-1", "create-1", "running"),
        request(94, "node-1", "/nodes/pve1/qemu/9000/clone", newid=500),
        machine(100, "node-1", "killed"),
        run(100.2, "node-1", "create-1", "ended"),
        job(134, "node-2", "pending", 2, "create-1"),
        job(135, "node-2", "processing", 3, "create-1"),
        job(136, "node-2", "processing", 3, "create-2"),
        run(137, "node-2", "create-2", "running"),
        request(138, "node-2", "/nodes/pve1/qemu/500/config"),
        run(149, "node-2", "create-2", "ended"),
        job(150, "node-2", "completed", 3, "create-2"),
        job(151, "node-2", "completed", 3, "create-2", is_report_claimed=True),
        call(151.1, "node-2"),
        job(151.2, "node-2", "completed", 3, "create-2"),
        make_final_facts(),
    ]


def find_problems(history: list[Json]) -> list[str]:
    """Return what the checker finds, in the order of time as the recorder writes it."""
    history = sorted(history, key=lambda record: float(record["at"]))
    return [*problems(history), *takeover_problems(takeovers(history))]


def test_a_correct_history_has_no_violation() -> None:
    assert find_problems(correct_history()) == []
    (takeover,) = takeovers(correct_history())
    assert (takeover.killed, takeover.taken_by, takeover.seconds, takeover.reap_s) == ("node-1", "node-2", 35, 34)


def remove(history: list[Json], kind: str, **values: Any) -> None:
    """Remove the only record with these values."""
    (record,) = [item for item in history if item["kind"] == kind and values.items() <= item.items()]
    history.remove(record)


def suspend_first_machine(history: list[Json], resumed_for_s: float) -> None:
    """Suspend the first machine instead of killing it; its run has processes this long after the machine resumes."""
    remove(history, "machine", what="killed")
    remove(history, "run", node="node-1", state="ended")
    history += [
        run(100.2, "node-1", "create-1", "suspended"),
        run(137.5, "node-1", "create-1", "running"),
        run(137.5 + resumed_for_s, "node-1", "create-1", "ended"),
    ]


def delay_takeover(history: list[Json], seconds: float) -> None:
    for record in history:
        if record["at"] > 120:
            record["at"] += seconds


def final_facts_of(history: list[Json]) -> Json:
    return history[-1]


def add_a_second_job(history: list[Json]) -> None:
    """Add a job of FulcrumCore that is not in our database."""
    final_facts_of(history)["core"]["jobs"].append(
        {"id": OTHER_JOB, "serviceId": SERVICE, "action": "start", "status": "Completed"}
    )


Mutant = tuple[str, Callable[[list[Json]], Any]]
#: What is altered in the correct history: a part of the text that the checker must give, and the change.
MUTANTS: dict[str, Mutant] = {
    "the report is missing": (
        f"R1 lost: no report of job {JOB} was accepted",
        lambda history: remove(history, "call"),
    ),
    "the report was refused": (
        f"R1 lost: no report of job {JOB} was accepted",
        lambda history: (remove(history, "call"), history.append(call(151.1, "node-2", status=400))),
    ),
    "the job did not end": (
        f"R1 lost: FulcrumCore's job {JOB} (create) is still Processing",
        lambda history: final_facts_of(history)["core"]["jobs"][0].update(status="Processing"),
    ),
    "a job never came to our database": (
        f"R1 lost: job {OTHER_JOB} of FulcrumCore is not in the database",
        add_a_second_job,
    ),
    "the history has no end": ("R1 lost: the history has no end", lambda history: history.pop()),
    "a second clone with the marker": (
        f"R2 doubled: service {SERVICE} has VMs [500, 501]",
        lambda history: final_facts_of(history)["guests"].append(guest(501, name="other")),
    ),
    "a second clone without a marker": (
        f"R2 doubled: guests [500, 501] have the name of service {SERVICE}",
        lambda history: final_facts_of(history)["guests"].append(guest(501, marker="")),
    ),
    "a clone in no mapping": (
        "R2 doubled: VM 501 (other) is in no mapping",
        lambda history: final_facts_of(history)["guests"].append(guest(501, marker="", name="other")),
    ),
    "the runs of two machines at once": (
        "R2 overlapping runs on one VM: create-1 and create-2",
        lambda history: (
            remove(history, "run", node="node-1", state="ended"),
            history.append(run(140, "node-1", "create-1", "ended")),
        ),
    ),
    "a run that never ended": (
        "R2 overlapping runs on one VM: create-1 and create-2",
        lambda history: remove(history, "run", node="node-1", state="ended"),
    ),
    "a suspended run that continues": (
        "R2 overlapping runs on one VM: create-1 and create-2",
        lambda history: suspend_first_machine(history, RESUME_GRACE_S + 2),
    ),
    "a request of the former owner": (
        "R2 overlapping: node-1 sent POST /nodes/pve1/qemu/500/config at 140.000",
        lambda history: history.append(request(140, "node-1", "/nodes/pve1/qemu/500/config")),
    ),
    "a request after the lease was taken": (
        f"when the job of service {SERVICE} was pending (node-2)",
        lambda history: history.append(request(134.5, "node-1", "/nodes/pve1/qemu/500/config")),
    ),
    "a clone of the former owner": (
        "R2 overlapping: node-1 sent POST /nodes/pve1/qemu/9000/clone",
        lambda history: history.append(request(140, "node-1", "/nodes/pve1/qemu/9000/clone", newid=500)),
    ),
    "a request of an unknown machine": (
        "R2 overlapping: None sent POST",
        lambda history: history.append(request(140, None, "/nodes/pve1/qemu/500/config")),  # type: ignore[arg-type]
    ),
    "the report of the former owner": (
        f"R3 stale report: node-1 reported job {JOB} and had not claimed the report",
        lambda history: (remove(history, "call"), history.append(call(151.1, "node-1"))),
    ),
    "a report of an earlier epoch": (
        f"R3 stale report: node-1 reported job {JOB} and had not claimed the report",
        lambda history: (
            remove(history, "call"),
            history.append(job(95, "node-1", "completed", 1, "create-1", is_report_claimed=True)),
            history.append(call(151.1, "node-1")),
        ),
    ),
    "a report before the job ended": (
        f"R3 stale report: node-1 reported complete of job {JOB}, which was processing",
        lambda history: history.append(call(140, "node-1")),
    ),
    "the opposite report": (
        f"R3 stale report: node-2 reported fail of job {JOB}, which was completed",
        lambda history: (
            remove(history, "call"),
            history.append(call(151.1, "node-2", COMPLETE_PATH.replace("complete", "fail"))),
        ),
    ),
    "two contradictory reports": (
        f"R3 contradictory: job {JOB} was reported as",
        lambda history: history.append(call(152, "node-2", COMPLETE_PATH.replace("complete", "fail"))),
    ),
    "a report of a job that is not known": (
        f"R3 stale report: node-2 reported complete of job {OTHER_JOB}, which was unknown",
        lambda history: history.append(call(152, "node-2", COMPLETE_PATH.replace(JOB, OTHER_JOB))),
    ),
    "a VM of another owner was changed": (
        "R4 the wrong VM: POST /nodes/pve1/qemu/9000/config",
        lambda history: history.append(request(140, "node-2", "/nodes/pve1/qemu/9000/config")),
    ),
    "takeovers are slow": (
        "slow takeover: the median is 38.0 s, more than 37 s",
        lambda history: delay_takeover(history, 3),
    ),
    "a takeover is very slow": (
        f"slow takeover: job {JOB} of node-1 was claimed after 46.0 s for node-2, more than 45 s",
        lambda history: delay_takeover(history, 11),
    ),
    "no job was taken over": (
        "slow takeover: no job was taken over",
        lambda history: remove(history, "machine", what="killed"),
    ),
}


@pytest.mark.parametrize("what", MUTANTS)
def test_each_altered_history_is_refused_with_the_text_of_its_problem(what: str) -> None:
    text, alter = MUTANTS[what]
    history = copy.deepcopy(correct_history())
    alter(history)
    texts = find_problems(history)
    assert any(text in item for item in texts), texts


def test_a_suspended_run_may_have_processes_for_a_short_time_after_its_machine_continues() -> None:
    history = correct_history()
    suspend_first_machine(history, RESUME_GRACE_S - 1)
    assert problems(sorted(history, key=lambda record: float(record["at"]))) == []


def test_a_job_that_its_own_machine_continues_is_no_takeover() -> None:
    history = correct_history()
    for record in history:
        if record["at"] > 120 and record["node"] == "node-2":
            record["node"] = "node-1"
    assert problems(history) == []
    assert takeovers(history) == []


def test_a_job_on_probation_must_be_reaped_in_time() -> None:
    history = correct_history()
    for record in history:
        if record["kind"] == "job" and record["epoch"] > 1:
            record["crashes"] = 2
        if record["at"] > 134.5:
            record["at"] += 20
    (takeover,) = takeovers(history)
    assert takeover.is_on_probation
    assert takeover.seconds == 55
    assert takeover_problems([takeover]) == ["slow takeover: no job was taken over"]
    delay_takeover(history, 12)
    assert any("was reaped after 46.0 s" in text for text in takeover_problems([*takeovers(history)] * 2))


def test_a_stored_history_is_checked_with_the_same_result(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    history = correct_history()
    history.append(request(155, "node-1", "/nodes/pve1/qemu/500/config"))
    history.sort(key=lambda record: float(record["at"]))
    recorder.write(file, history)
    assert recorder.read(file) == history
    report = make_report(recorder.read(file), [], seed=1, lease_s=30, took_s=1, faults={})
    assert report.violation_counts["overlapping runs on one VM"] == 1
    assert sum(report.violation_counts.values()) == 1
    assert not report.is_passed
    assert report.takeover_s == (35, 35)
    assert (report.jobs, report.runs_seen, report.reports) == ({"Completed": 1}, 2, 1)


@pytest.mark.parametrize("content", [None, "no JSON"])
def test_a_history_that_cannot_be_read_ends_with_a_message(
    tmp_path: Path, content: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "history.jsonl"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr("sys.argv", ["make many-machines", "--check", str(file)])
    assert main() == NO_HISTORY
    assert capsys.readouterr().out.startswith(f"no history can be read from {file}: ")
