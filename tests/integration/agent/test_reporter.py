"""The reporter against the simulator: every kind of response, and random sequences of events."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from smith_lab.simulator.control import SimulatorThread, running_simulator
from sqlalchemy import Engine, update
from support.databases import migrated_sqlite_file, new_job
from support.simulator_world import World

from executor.agent.heartbeat import Heartbeat
from executor.agent.poller import Poller
from executor.agent.refused_jobs import RefusedJobs
from executor.agent.report import completion_arguments, with_left_out_properties
from executor.agent.reporter import (
    BACKOFF_WAIT_S,
    IDLE_WAIT_S,
    MAX_FAILED_COMPLETIONS,
    REFUSED_REPORT_BACKOFF_S,
    SENDER_THREADS,
    Reporter,
)
from executor.agent.state import AgentState
from executor.database import job_queue
from executor.database.engine import open_engine, reading, transaction
from executor.database.outbox import postpone_report
from executor.database.tables import Job, utc_now
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.vault import SecretResolver
from executor.model import JobResult, JobStatus
from executor.shared.error_codes import ErrorCode

Json = dict[str, Any]
VMIDS = itertools.count(100_000)
FAILED = JobResult(succeeded=False, code=ErrorCode.CAPACITY, detail="the storage is full (run create-1)")
#: Refused by the service type, whose schema defines macAddress as a string.
INVALID_MAC = {"mac_address": 7}


def made(**more: Any) -> JobResult:
    vm = {"vmid": next(VMIDS), "node": "pve1", "name": "web-1", "status": "stopped", "mac_address": "BC:24:11:00:00:01"}
    return JobResult(succeeded=True, vm=vm | more)


class Outbox:
    """A database with ended jobs, and the reporter that sends their results."""

    def __init__(self, world: World, engine: Engine) -> None:
        self.world = world
        self.engine = engine
        self.state = AgentState(agent_id=world.ids.agent_id)
        self.restart()

    def restart(self) -> None:
        """Make a new reporter, as after a crash: only the rows are kept."""
        client = FulcrumClient(self.world.sim.url, lambda: self.world.ids.agent_token, read_timeout_s=5)
        self.now = 0.0
        self.refused_jobs = RefusedJobs(fulcrum=client, clock=lambda: self.now)
        self.reporter = Reporter(engine=self.engine, fulcrum=client, state=self.state, refused_jobs=self.refused_jobs)

    def ordered(self, *, claimed: bool = True) -> Json:
        """Order a service; return its create job, claimed at FulcrumCore."""
        number = next(VMIDS)
        service = self.world.order(self.world.group(f"group-{number}"), name=f"web-{number}")
        return self.world.claimed(service) if claimed else self.world.job_of(service)

    def ended(self, job: Json, result: JobResult) -> int:
        """Store the job's end; return our id."""
        with transaction(self.engine) as session:
            submitted = new_job(fulcrum_id=job["id"], service_id=job["serviceId"], action=job["action"])
            job_queue.submit(session, submitted)
            row = job_queue.claim(session, "me", lease_s=30)
            assert row is not None
            job_queue.finish(session, job_queue.lease_of(row), result)
        return row.id

    def row(self, job_id: int) -> Job:
        with reading(self.engine) as session:
            return session.get_one(Job, job_id)

    def turn(self, times: int = 1) -> float:
        """Let the reporter take turns without a backoff between them."""
        wait_s = 0.0
        for _ in range(times):
            with transaction(self.engine) as session:
                session.execute(update(Job).values(report_after=None))
            wait_s = self.reporter.send_due_reports()
        return wait_s

    def at_core(self, job: Json) -> Json:
        return dict(self.world.admin.call("GET", f"/jobs/{job['id']}"))

    def reports(self, job: Json) -> list[tuple[str, int | None]]:
        """Return every report of a job that FulcrumCore received, with its response."""
        calls = self.world.sim.history(method="POST")
        return [
            (call["path"].rsplit("/", 1)[1], call["status"])
            for call in calls
            if call["path"].endswith((f"/{job['id']}/complete", f"/{job['id']}/fail"))
        ]


@pytest.fixture(scope="module")
def sim() -> Iterator[SimulatorThread]:
    with running_simulator() as simulator:
        yield simulator


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return migrated_sqlite_file(tmp_path_factory.mktemp("outbox"))


@pytest.fixture
def outbox(sim: SimulatorThread, template: Path, tmp_path: Path) -> Iterator[Outbox]:
    shutil.copyfile(template, tmp_path / "smith.db")
    engine, world = open_engine(f"sqlite:///{tmp_path / 'smith.db'}"), World(sim)
    yield Outbox(world, engine)
    world.close()
    engine.dispose()


# --- content of reports ---------------------------------------------------------------------------------------------


def test_a_success_is_reported_with_instance_data_and_properties(outbox: Outbox) -> None:
    job = outbox.ordered()
    result = made(ip_addresses=["192.0.2.7"], snapshot="smith-1")
    job_id = outbox.ended(job, result)
    assert outbox.turn() == 0.0
    vmid = result.vm["vmid"]
    service = outbox.world.admin.get_service(job["serviceId"])
    assert service["agentInstanceId"] == f"{outbox.world.ids.agent_id}/{vmid}"
    made_as = {"vmid": vmid, "node": "pve1", "name": "web-1", "mac_address": "BC:24:11:00:00:01"}
    assert service["agentInstanceData"] == made_as | {"ip_addresses": ["192.0.2.7"], "snapshot": "smith-1"}
    reported = {"vmid": vmid, "node": "pve1", "macAddress": "BC:24:11:00:00:01", "ipAddresses": ["192.0.2.7"]}
    assert (reported | {"lastSnapshot": "smith-1"}).items() <= service["properties"].items()
    row = outbox.row(job_id)
    assert (row.report_state, row.report_note, row.report_after) == ("reported", None, None)
    assert row.reported_at is not None
    assert outbox.state.poll_requested.is_set(), "FulcrumCore shows the group's next job only now"


@pytest.mark.parametrize(
    ("action", "vm", "members"),
    [
        (
            "update",
            {"vmid": 101, "node": "pve1", "reboot_required": True},
            {"agent_instance_id", "agent_instance_data"},
        ),
        ("delete", {"vmid": 101, "status": "absent"}, set()),
        ("delete", {}, set()),
        ("start", {"vmid": 101}, {"agent_instance_id", "agent_instance_data", "properties"}),
    ],
)
def test_the_members_of_a_completion_depend_on_action_and_vm(action: str, vm: Json, members: set[str]) -> None:
    """After an update FulcrumCore sets the properties to the job's params; a deleted VM has none."""
    sent = completion_arguments(Job(action=action, result=vm), "agent")
    assert set(sent) == members
    assert sent.get("agent_instance_data", {}) == {name: vm[name] for name in vm if name != "status"} or not members


def test_the_instance_data_names_the_properties_whose_secret_is_gone(outbox: Outbox) -> None:
    job = outbox.ordered()
    outbox.ended(job, with_left_out_properties(made(), ["ciPassword", "password", "ciPassword"]))
    outbox.turn()
    service = outbox.world.admin.get_service(job["serviceId"])
    assert service["agentInstanceData"]["left_out_properties"] == ["ciPassword", "password"]
    assert with_left_out_properties(FAILED, []) == FAILED


def test_a_vm_in_its_grace_period_is_reported_without_an_instance_id() -> None:
    vm = {"vmid": 101, "node": "pve1", "name": "web", "delete_at": 1_800_000_000, "status": "stopped", "cores": 2}
    kept = {"vmid": 101, "node": "pve1", "name": "web", "delete_at": 1_800_000_000}
    assert completion_arguments(Job(action="delete", result=vm), "agent") == {"agent_instance_data": kept}
    assert completion_arguments(Job(action="delete", result={"vmid": 101, "status": "absent"}), "agent") == {}


def test_a_failure_is_reported_with_our_error_message(outbox: Outbox) -> None:
    job = outbox.ordered()
    outbox.ended(job, FAILED)
    outbox.turn()
    assert outbox.at_core(job)["errorMessage"] == "CAPACITY: the storage is full (run create-1)"


def test_without_due_reports_the_next_turn_follows_soon(outbox: Outbox) -> None:
    assert outbox.turn() == IDLE_WAIT_S
    assert not outbox.state.poll_requested.is_set()


def test_many_reports_are_sent_in_one_turn(outbox: Outbox) -> None:
    jobs = [outbox.ordered() for _ in range(3 * SENDER_THREADS)]
    for job in jobs:
        outbox.ended(job, made())
    outbox.turn()
    assert {outbox.at_core(job)["status"] for job in jobs} == {"Completed"}


# --- refusals: GET /jobs/{id} decides -----------------------------------------------------------------------------


@pytest.mark.parametrize("result", [made(), FAILED], ids=["success", "failure"])
def test_a_report_whose_response_was_lost_is_settled_by_get_job(outbox: Outbox, result: JobResult) -> None:
    job = outbox.ordered()
    outbox.world.sim.add_fault("drop_after", method="POST", path=r"/(complete|fail)$", times=1)
    job_id = outbox.ended(job, result)
    outbox.turn(2)
    assert [status for _what, status in outbox.reports(job)] == [None, 400]
    row = outbox.row(job_id)
    assert (row.report_state, row.report_note) == ("reported", "FulcrumCore had accepted an earlier report")


@pytest.mark.parametrize("result", [made(), FAILED], ids=["success", "failure"])
def test_a_job_that_fulcrumcore_timed_out_keeps_our_outcome_as_overtaken(outbox: Outbox, result: JobResult) -> None:
    job = outbox.ordered()
    outbox.world.sim.expire_job(job["id"])
    job_id = outbox.ended(job, result)
    outbox.turn()
    row = outbox.row(job_id)
    assert row.report_state == "overtaken"
    assert row.report_note == "the job's status at FulcrumCore is Failed; the agent keeps its own result"
    assert row.status == ("completed" if result.succeeded else "failed")


def test_a_failure_of_a_job_that_is_completed_at_core_is_overtaken(outbox: Outbox) -> None:
    job = outbox.ordered()
    assert outbox.world.agent.complete(job).status_code == 204
    job_id = outbox.ended(job, FAILED)
    outbox.turn()
    assert outbox.row(job_id).report_state == "overtaken"
    assert outbox.reports(job) == [("complete", 204), ("fail", 400)]


def test_a_job_that_was_never_claimed_is_claimed_and_reported(outbox: Outbox) -> None:
    job = outbox.ordered(claimed=False)
    job_id = outbox.ended(job, FAILED)
    outbox.turn()
    assert outbox.at_core(job)["status"] == "Failed"
    assert outbox.row(job_id).report_state == "reported"


def test_properties_that_the_service_type_refuses_are_left_out(outbox: Outbox) -> None:
    job = outbox.ordered()
    job_id = outbox.ended(job, made(**INVALID_MAC))
    outbox.turn()
    assert outbox.at_core(job)["status"] == "Completed"
    row = outbox.row(job_id)
    assert row.report_state == "reported"
    assert str(row.report_note).startswith("reported without properties: ")
    assert "macAddress" not in outbox.world.admin.get_service(job["serviceId"])["properties"]


def test_a_completion_that_is_refused_without_properties_too_becomes_a_failure(outbox: Outbox) -> None:
    job = outbox.ordered()
    outbox.world.sim.add_fault("status", status=400, method="POST", path="/complete$")
    job_id = outbox.ended(job, made())
    outbox.turn()
    assert outbox.reports(job) == [("complete", 400), ("complete", 400), ("fail", 204)]
    row = outbox.row(job_id)
    assert (row.status, row.error_code, row.report_state) == ("failed", "RESULT_REFUSED", "reported")
    assert outbox.at_core(job)["errorMessage"] == row.error_message
    assert row.error_message == "RESULT_REFUSED: FulcrumCore does not accept the result of the job (HTTP 400)"


@pytest.mark.parametrize("member", ["error", "status", "errors"])
@pytest.mark.parametrize("status", [400, 409, 422, 500])
def test_no_text_of_fulcrumcore_is_sent_back_to_it(outbox: Outbox, status: int, member: str) -> None:
    """Consumers can read an error message, and a text of FulcrumCore may have SQL, paths, or an error code."""
    text = "CAPACITY: duplicate key (SQLSTATE 23505) INSERT INTO services /srv/core/db.go"
    body = {"errors": [{"path": text, "message": text}]} if member == "errors" else {member: text}
    outbox.world.sim.add_fault("status", status=status, body=body, method="POST", path="/complete$")
    job = outbox.ordered()
    job_id = outbox.ended(job, made())
    outbox.turn(MAX_FAILED_COMPLETIONS + 1)

    sent = [call["body"] for call in outbox.world.sim.history(method="POST") if call["path"].endswith("/fail")]
    detail = f"FulcrumCore does not accept the result of the job (HTTP {status})"
    assert sent[-1] == {"errorMessage": f"RESULT_REFUSED: {detail}"}
    assert outbox.at_core(job)["errorMessage"] == f"RESULT_REFUSED: {detail}"
    assert outbox.row(job_id).error_message == f"RESULT_REFUSED: {detail}"
    assert "SQLSTATE" in str(outbox.row(job_id).report_note), "the operator finds the text in the row"


@pytest.mark.parametrize("result", [made(), FAILED])
def test_a_report_that_is_refused_while_the_job_is_processing_is_kept(outbox: Outbox, result: JobResult) -> None:
    """The service type no longer allows the action's end. After its repair, the report is accepted."""
    job = outbox.ordered()
    outbox.world.sim.add_fault("status", status=400, method="POST", path=r"/(complete|fail)$")
    job_id = outbox.ended(job, result)
    before = utc_now()
    for _ in range(3):
        outbox.turn()
    row = outbox.row(job_id)
    assert (row.report_state, row.report_attempts) == ("due", 3)
    assert row.report_after is not None
    assert (row.report_after - before).total_seconds() >= REFUSED_REPORT_BACKOFF_S
    assert outbox.state.fulcrum_link.is_up
    outbox.world.sim.clear_faults()
    with transaction(outbox.engine) as session:
        assert job_queue.retry_now(session, job_id) == "report"
    outbox.turn()
    assert outbox.row(job_id).report_state == "reported"
    assert outbox.at_core(job)["status"] == ("Completed" if result.succeeded else "Failed")


def test_a_reported_job_that_fulcrumcore_lists_as_pending_again_is_reported_again(outbox: Outbox) -> None:
    """FulcrumCore's database was restored from a backup that was made before the job was claimed."""
    job = outbox.ordered(claimed=False)
    job_id = outbox.ended(job, made())
    with transaction(outbox.engine) as session:
        session.execute(update(Job).values(report_state="reported", claimed_at=utc_now(), started_at=utc_now()))
    client = outbox.reporter.fulcrum
    poller = Poller(
        engine=outbox.engine,
        fulcrum=client,
        secrets=SecretResolver(client),
        state=outbox.state,
        job_timeout_s=300,
        interval_s=2,
    )
    poller.poll()
    assert outbox.row(job_id).report_state == "due"
    outbox.turn()
    assert outbox.row(job_id).report_state == "reported"
    assert outbox.at_core(job)["status"] == "Completed"


def test_a_failure_that_is_refused_while_the_job_is_processing_is_retried(outbox: Outbox) -> None:
    job = outbox.ordered()
    outbox.world.sim.add_fault("status", status=400, method="POST", path="/fail$", times=1)
    job_id = outbox.ended(job, FAILED)
    outbox.turn()
    assert (outbox.row(job_id).report_state, outbox.row(job_id).report_attempts) == ("due", 1)
    assert str(outbox.row(job_id).report_note).startswith("FulcrumCore refused the report of the failure: ")
    outbox.turn()
    assert outbox.row(job_id).report_state == "reported"


@pytest.mark.parametrize(
    ("result", "refused", "note"),
    [
        (made(), "complete", "reported without properties: "),
        (made(), "(complete|fail)", "FulcrumCore refused the result and the failure: "),
        (FAILED, "fail", "FulcrumCore refused the report of the failure: "),
    ],
    ids=["completion", "completion and failure", "failure"],
)
def test_the_note_of_a_refused_report_contains_the_answer_of_fulcrumcore(
    outbox: Outbox, result: JobResult, refused: str, note: str
) -> None:
    body, times = {"error": "the schema refuses it"}, 3 if refused == "(complete|fail)" else 1
    outbox.world.sim.add_fault("status", status=400, body=body, method="POST", path=f"/{refused}$", times=times)
    job_id = outbox.ended(outbox.ordered(), result)
    outbox.turn()
    stored = str(outbox.row(job_id).report_note)
    assert stored.startswith(note)
    assert "the schema refuses it" in stored


def test_the_first_postponement_of_a_report_is_logged_with_its_reason(outbox: Outbox) -> None:
    body = {"error": "the instance id exists"}
    outbox.world.sim.add_fault("status", status=500, body=body, method="POST", path="/complete$")
    job = outbox.ordered()
    job_id = outbox.ended(job, made())
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
        outbox.turn(2)
    (logged,) = [entry for entry in logs if entry["event"] == "report_postponed"]
    assert (logged["log_level"], logged["job_id"]) == ("warning", job["id"])
    assert "the instance id exists" in logged["reason"]
    assert logged["reason"] == outbox.row(job_id).report_note


def test_a_claim_that_is_refused_is_retried(outbox: Outbox) -> None:
    job = outbox.ordered(claimed=False)
    body = {"error": "the job is locked"}
    outbox.world.sim.add_fault("status", status=400, body=body, method="POST", path="/claim$", times=1)
    job_id = outbox.ended(job, made())
    outbox.turn()
    row = outbox.row(job_id)
    assert (row.report_state, row.report_attempts) == ("due", 1)
    assert "the job is locked" in str(row.report_note)
    assert outbox.state.fulcrum_link.is_up, "it answered, about this job"
    outbox.turn()
    assert (outbox.row(job_id).report_state, outbox.row(job_id).report_note) == ("reported", None)


def test_each_report_is_logged_and_an_overtaken_one_is_an_error(outbox: Outbox) -> None:
    job, overtaken = outbox.ordered(), outbox.ordered()
    assert outbox.world.agent.complete(overtaken).status_code == 204
    outbox.ended(job, made())
    outbox.ended(overtaken, FAILED)
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
        outbox.turn()
    logged = {entry["job_id"]: entry for entry in logs if entry["event"] == "job_reported"}
    assert logged[job["id"]] == {
        **{"event": "job_reported", "log_level": "info", "report_state": "reported", "note": None},
        **{"status": "completed", "action": "create", "job_id": job["id"], "service_id": job["serviceId"]},
    }
    entry = logged[overtaken["id"]]
    assert (entry["log_level"], entry["report_state"], entry["status"]) == ("error", "overtaken", "failed")
    assert entry["note"] == "the job's status at FulcrumCore is Completed; the agent keeps its own result"


def test_an_instance_id_of_another_service_becomes_a_failure_after_several_attempts(outbox: Outbox) -> None:
    """FulcrumCore always answers 500: instance ids are unique in its whole database."""
    result = made()
    outbox.world.created(f"{outbox.world.ids.agent_id}/{result.vm['vmid']}")
    job = outbox.ordered()
    job_id = outbox.ended(job, result)
    outbox.turn(MAX_FAILED_COMPLETIONS)
    assert (outbox.row(job_id).report_state, outbox.row(job_id).report_attempts) == ("due", MAX_FAILED_COMPLETIONS)
    assert outbox.state.fulcrum_link.is_up, "it answered, about this job"
    outbox.turn()
    row = outbox.row(job_id)
    assert (row.status, row.error_code, row.report_state) == ("failed", "RESULT_REFUSED", "reported")
    assert "SQLSTATE" not in str(row.error_message)
    assert "HTTP 500" in str(row.report_note)


def test_attempts_during_an_outage_do_not_count_as_failed_completions(outbox: Outbox) -> None:
    result = made()
    job = outbox.ordered()
    job_id = outbox.ended(job, result)
    outbox.world.sim.add_fault("status", status=503)
    outbox.turn(MAX_FAILED_COMPLETIONS + 1)
    outbox.world.sim.clear_faults()
    outbox.world.sim.add_fault("status", status=500, path=r"/complete$")
    outbox.turn(MAX_FAILED_COMPLETIONS)
    row = outbox.row(job_id)
    assert (row.status, row.report_state, row.report_attempts) == ("completed", "due", 2 * MAX_FAILED_COMPLETIONS + 1)
    outbox.world.sim.clear_faults()
    outbox.turn()
    assert (outbox.row(job_id).status, outbox.row(job_id).report_state) == ("completed", "reported")


def test_an_outage_between_two_failed_completions_starts_a_new_count(outbox: Outbox) -> None:
    job_id = outbox.ended(outbox.ordered(), made())
    for fault, turns in (({"status": 500, "path": r"/complete$"}, MAX_FAILED_COMPLETIONS), ({"status": 503}, 1)) * 2:
        outbox.world.sim.clear_faults()
        outbox.world.sim.add_fault("status", **fault)
        outbox.turn(turns)
    assert (outbox.row(job_id).status, outbox.row(job_id).report_state) == ("completed", "due")


def test_failed_completions_before_an_accepted_one_do_not_count(outbox: Outbox) -> None:
    job = outbox.ordered()
    job_id = outbox.ended(job, made())
    for _ in range(2):
        outbox.world.sim.add_fault("status", status=500, path=r"/complete$")
        outbox.turn(MAX_FAILED_COMPLETIONS)
        outbox.world.sim.clear_faults()
        outbox.turn()
        assert outbox.row(job_id).report_state == "reported"
        with transaction(outbox.engine) as session:
            assert job_queue.retry_now(session, job_id) == "report"
    assert {what for what, _status in outbox.reports(job)} == {"complete"}


def test_a_failure_that_replaces_a_completion_is_sent_again_after_an_outage(outbox: Outbox) -> None:
    job = outbox.ordered()
    job_id = outbox.ended(job, made())
    outbox.world.sim.add_fault("status", status=500, path=r"/complete$")
    outbox.world.sim.add_fault("status", status=503, path=r"/fail$", times=1)
    outbox.turn(MAX_FAILED_COMPLETIONS + 2)
    assert outbox.reports(job)[-4:] == [("complete", 500), ("fail", 503), ("complete", 500), ("fail", 204)]
    assert (outbox.row(job_id).error_code, outbox.row(job_id).report_state) == ("RESULT_REFUSED", "reported")


# --- FulcrumCore is down ------------------------------------------------------------------------------------------


def test_in_an_outage_the_backoff_grows_to_a_minute(outbox: Outbox) -> None:
    job = outbox.ordered()
    job_id = outbox.ended(job, made())
    outbox.world.sim.add_fault("status", status=503)
    waits = []
    for _ in range(9):
        before = utc_now()
        loop_wait_s = outbox.turn()
        row = outbox.row(job_id)
        assert row.report_state == "due"
        assert row.report_after is not None
        waits.append(((row.report_after - before).total_seconds(), loop_wait_s))
    assert outbox.row(job_id).report_attempts == 9
    assert not outbox.state.fulcrum_link.is_up
    assert "503" in outbox.state.fulcrum_link.reason
    for attempt, (row_backoff_s, loop_wait_s) in enumerate(waits):
        max_s = min(2.0**attempt, 60.0)
        assert max_s * 0.5 - 0.1 <= row_backoff_s <= max_s + 1
        assert min(2.0 ** (attempt + 1), 60.0) * 0.5 <= loop_wait_s <= min(2.0 ** (attempt + 1), 60.0)
    assert not outbox.state.poll_requested.is_set()
    outbox.world.sim.clear_faults()
    assert outbox.turn() == 0.0
    assert outbox.state.fulcrum_link.is_up
    assert outbox.row(job_id).report_state == "reported"


@pytest.mark.parametrize("seen_by", ["reporter", "another part"])
def test_after_an_outage_the_waits_between_rounds_start_at_the_shortest(outbox: Outbox, seen_by: str) -> None:
    outbox.ended(outbox.ordered(), made())
    outbox.world.sim.add_fault("status", status=503)
    outbox.turn(4)
    if seen_by == "reporter":
        outbox.world.sim.clear_faults()
        assert outbox.turn() == 0.0
        outbox.ended(outbox.ordered(), made())
        outbox.world.sim.add_fault("status", status=503)
    outbox.state.fulcrum_recovered.clear()
    if seen_by == "another part":
        outbox.state.fulcrum_recovered.set()
    assert 1.0 <= outbox.turn() < 2.0


@pytest.mark.parametrize("status", [403, 503])
def test_the_first_report_that_gets_no_answer_ends_the_round(outbox: Outbox, status: int) -> None:
    """Each sender may have begun one report when the first answer arrives."""
    jobs = [outbox.ordered() for _ in range(3 * SENDER_THREADS)]
    job_ids = [outbox.ended(job, made()) for job in jobs]
    outbox.world.sim.add_fault("status", status=status)
    outbox.reporter.send_due_reports()
    assert 1 <= sum(len(outbox.reports(job)) for job in jobs) <= SENDER_THREADS
    assert {outbox.row(job_id).report_state for job_id in job_ids} == {"due"}
    outbox.world.sim.clear_faults()
    assert outbox.turn() == 0.0
    assert {outbox.row(job_id).report_state for job_id in job_ids} == {"reported"}


def test_retry_after_is_respected(outbox: Outbox) -> None:
    job_id = outbox.ended(outbox.ordered(), made())
    outbox.world.sim.add_fault("status", status=429, path="/complete$", times=1, headers={"Retry-After": "40"})
    before = utc_now()
    outbox.turn()
    after = outbox.row(job_id).report_after
    assert after is not None
    assert (after - before).total_seconds() >= 40


@pytest.mark.parametrize("seen_by", ["heartbeat", "poller"])
def test_the_first_part_that_sees_fulcrumcore_answer_again_ends_the_backoff_of_every_report(
    outbox: Outbox, seen_by: str
) -> None:
    job = outbox.ordered()
    job_id = outbox.ended(job, FAILED)
    with transaction(outbox.engine) as session:
        postpone_report(session, job_id, backoff_s=3600, note="no answer")
    outbox.state.fulcrum_link.note_down("away")
    assert outbox.reporter.send_due_reports() == BACKOFF_WAIT_S
    assert outbox.reports(job) == []

    state, fulcrum = outbox.state, outbox.reporter.fulcrum
    if seen_by == "heartbeat":
        Heartbeat(fulcrum=fulcrum, state=state).send()
    else:
        Poller(
            engine=outbox.engine,
            fulcrum=fulcrum,
            secrets=SecretResolver(fulcrum),
            state=state,
            job_timeout_s=300,
            interval_s=2,
        ).poll()

    assert state.report_requested.is_set(), "the reporter's wait ends"
    assert state.dispatch_requested.is_set(), "jobs may be claimed again"
    outbox.reporter.send_due_reports()
    assert outbox.reports(job) == [("fail", 204)]


def test_after_an_outage_all_reports_are_due_at_once(outbox: Outbox) -> None:
    first, *others = [outbox.ended(outbox.ordered(), made()) for _ in range(4)]
    outbox.state.fulcrum_link.note_down("away")
    with transaction(outbox.engine) as session:
        for job_id in others:
            postpone_report(session, job_id, backoff_s=3600, note="away")
    assert outbox.reporter.send_due_reports() == 0.0
    assert outbox.row(first).report_state == "reported"
    assert outbox.reporter.send_due_reports() == 0.0
    assert {outbox.row(job_id).report_state for job_id in others} == {"reported"}


def test_a_job_that_fulcrumcore_has_deleted_is_abandoned(outbox: Outbox) -> None:
    job = outbox.ordered()
    job_id = outbox.ended(job, made())
    outbox.world.sim.delete_job(job["id"])
    states: list[str] = []
    notes: list[str | None] = []
    for outbox.now in (0, 1, 40, 80, 130):
        outbox.turn()
        states.append(outbox.row(job_id).report_state)
        notes.append(outbox.row(job_id).report_note)
    assert notes[0] == "FulcrumCore refused to accept the report (1 refusals in 0 s)"
    assert states == ["due"] * 4 + ["abandoned"]
    assert outbox.row(job_id).report_note == "the job was deleted in FulcrumCore, or belongs to another agent"
    assert outbox.state.fulcrum_link.is_up


def test_403_windows_in_which_some_requests_succeed_abandon_no_job(outbox: Outbox) -> None:
    """FulcrumCore's database is down for a moment at each report, but never at the requests in between."""
    job = outbox.ordered()
    job_id = outbox.ended(job, made())
    for outbox.now in (0, 100, 200, 300, 400):
        outbox.world.sim.add_fault("status", status=403, path="/jobs/", times=2)
        outbox.turn()
        assert outbox.row(job_id).report_state == "due"
        outbox.world.sim.clear_faults()
        outbox.world.sim.add_fault("status", status=403, path="/agents/me$", times=1)
        outbox.world.sim.add_fault("status", status=403, path="/complete$", times=1)
        outbox.turn()
        outbox.world.sim.clear_faults()
        assert outbox.row(job_id).report_state == "due"
    outbox.turn()
    assert outbox.row(job_id).report_state == "reported"
    assert outbox.at_core(job)["status"] == "Completed"


def test_an_abandoned_report_is_sent_when_fulcrumcore_lists_the_job_again(outbox: Outbox) -> None:
    """FulcrumCore refused the job for minutes, as if the job was deleted, and then knows the job again."""
    job = outbox.ordered()
    job_id = outbox.ended(job, made())
    outbox.world.sim.add_fault("status", status=403, path="/jobs/")
    for outbox.now in (0, 40, 80, 130):
        outbox.turn()
    assert outbox.row(job_id).report_state == "abandoned"
    outbox.world.sim.clear_faults()
    with transaction(outbox.engine) as session:
        session.execute(update(Job).values(started_at=utc_now()))  # the job's result is that of a run
        assert job_queue.reopen(session, [job["id"]], are_claimed=True, now_at_core=utc_now()) == 1
    outbox.turn()
    assert outbox.row(job_id).report_state == "reported"
    assert outbox.at_core(job)["status"] == "Completed"


def test_a_token_that_every_request_refuses_abandons_no_job(outbox: Outbox) -> None:
    job_id = outbox.ended(outbox.ordered(), made())
    outbox.world.sim.add_fault("status", status=403, path="^/api/")
    outbox.turn()
    assert outbox.row(job_id).report_state == "due"
    assert not outbox.state.fulcrum_link.is_up


def test_a_single_403_abandons_no_job(outbox: Outbox) -> None:
    """FulcrumCore answers 403 for a deleted job, and also while its database is down."""
    job = outbox.ordered()
    job_id = outbox.ended(job, made())
    outbox.world.sim.add_fault("status", status=403, method="POST", path="/complete$", times=1)
    outbox.turn()
    assert outbox.row(job_id).report_state == "due"
    assert outbox.state.fulcrum_link.is_up
    outbox.turn()
    assert outbox.row(job_id).report_state == "reported"
    assert outbox.at_core(job)["status"] == "Completed"


def test_an_agent_that_stops_sends_no_further_report(outbox: Outbox) -> None:
    """A round may be longer than the time that a stopping agent has. A report that is not sent stays due."""
    job = outbox.ordered()
    job_id = outbox.ended(job, FAILED)
    outbox.state.stopping.set()
    outbox.turn()
    assert outbox.reports(job) == []
    assert outbox.row(job_id).report_state == "due"


def test_flush_sends_due_reports_and_returns_whether_all_were_sent(outbox: Outbox) -> None:
    job_id = outbox.ended(outbox.ordered(), made())
    assert outbox.reporter.flush(10)
    assert outbox.row(job_id).report_state == "reported"
    outbox.ended(outbox.ordered(), made())
    outbox.world.sim.add_fault("status", status=503)
    assert not outbox.reporter.flush(1)


# --- random order ---------------------------------------------------------------------------------------------------


class Reports(RuleBasedStateMachine):
    """Jobs end, FulcrumCore loses responses, times jobs out and fails, and the reporter is restarted at any time."""

    sim: SimulatorThread
    folder: Path
    template: Path
    numbers = itertools.count()

    jobs = Bundle("jobs")

    @initialize()
    def begin(self) -> None:
        file = self.folder / f"{next(self.numbers)}.db"
        shutil.copyfile(self.template, file)
        self.world = World(self.sim)
        self.outbox = Outbox(self.world, open_engine(f"sqlite:///{file}"))
        self.timed_out: set[str] = set()
        self.ended_jobs: dict[str, int] = {}

    @rule(target=jobs)
    def order(self) -> Json:
        return self.outbox.ordered()

    @rule(job=consumes(jobs), result=st.sampled_from(["made", "failed", "invalid"]))
    def end(self, job: Json, result: str) -> None:
        results = {"made": made(), "failed": FAILED, "invalid": made(**INVALID_MAC)}
        self.ended_jobs[job["id"]] = self.outbox.ended(job, results[result])

    @rule(job=jobs)
    def time_out(self, job: Json) -> None:
        if job["id"] not in self.timed_out:
            self.timed_out.add(job["id"])
            self.sim.expire_job(job["id"])

    @rule(
        kind=st.sampled_from(["drop_after", "drop_before", "truncate", "html", "empty"]),
        path=st.sampled_from([r"/complete$", r"/fail$", r"/jobs/[^/]+$"]),
        times=st.integers(1, 3),
    )
    def add_fault(self, kind: str, path: str, times: int) -> None:
        self.sim.add_fault(kind, path=path, times=times)

    @rule(status=st.sampled_from([400, 403, 500, 503]), times=st.integers(1, 4))
    def refuse(self, status: int, times: int) -> None:
        self.sim.add_fault("status", status=status, method="POST", path=r"/(complete|fail)$", times=times)

    @rule()
    def turn(self) -> None:
        self.outbox.turn()

    @rule()
    def restart(self) -> None:
        self.outbox.restart()

    @invariant()
    def no_job_has_two_accepted_outcomes(self) -> None:
        for job_id in getattr(self, "ended_jobs", {}):
            accepted = {what for what, status in self.outbox.reports({"id": job_id}) if status == 204}
            assert len(accepted) <= 1

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        self.sim.clear_faults()
        self.outbox.turn(MAX_FAILED_COMPLETIONS + 2)
        for job_id, number in self.ended_jobs.items():
            row, core = self.outbox.row(number), self.outbox.at_core({"id": job_id})
            assert row.report_state in ("reported", "overtaken")  # FulcrumCore has every one of these jobs
            if row.report_state == "reported":
                assert core["status"].lower() == row.status
                assert row.status == JobStatus.COMPLETED or core["errorMessage"] == row.error_message
            else:
                assert row.report_note
        self.world.close()
        self.outbox.engine.dispose()


@pytest.fixture(scope="module", autouse=True)
def _for_the_machine(sim: SimulatorThread, template: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    Reports.sim, Reports.template, Reports.folder = sim, template, tmp_path_factory.mktemp("machine")


class TestReports(Reports.TestCase):  # type: ignore[name-defined,misc]
    """Hypothesis's test, limited to a few seconds."""

    settings = settings(
        max_examples=12,
        stateful_step_count=25,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
