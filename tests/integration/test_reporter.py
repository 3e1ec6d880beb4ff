"""The outbox against the simulator: what becomes of each answer, and any order of everything."""

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
from simulator_world import World
from smith_lab.simulator.control import RunningSimulator, running_simulator
from sqlalchemy import Engine, update
from support.databases import migrated_sqlite_file, new_job

from executor.agent.reporter import IDLE_WAIT_S, MAX_COMPLETIONS, SENDERS, Reporter, completion
from executor.agent.state import AgentState
from executor.database import job_queue
from executor.database.engine import open_engine, reading, transaction
from executor.database.outbox import postpone_report
from executor.database.tables import Job, utc_now
from executor.errors import ErrorCode
from executor.fulcrum.client import FulcrumClient
from executor.model import JobResult, JobStatus

Json = dict[str, Any]
VMIDS = itertools.count(100_000)
FAILED = JobResult(succeeded=False, code=ErrorCode.CAPACITY, detail="the storage is full (run create-1)")
#: Refused by the service type: its schema knows macAddress as a text.
ODD_MAC = {"mac_address": 7}


def made(**more: Any) -> JobResult:
    vm = {"vmid": next(VMIDS), "node": "pve1", "name": "web-1", "status": "stopped", "mac_address": "BC:24:11:00:00:01"}
    return JobResult(succeeded=True, vm=vm | more)


class Outbox:
    """A database with ended jobs, and the reporter that has to tell them."""

    def __init__(self, world: World, engine: Engine) -> None:
        self.world = world
        self.engine = engine
        self.state = AgentState(agent_id=world.ids.agent_id)
        self.restart()

    def restart(self) -> None:
        """Begin anew, as after a crash: what is in the rows is all that is known."""
        client = FulcrumClient(self.world.sim.url, lambda: self.world.ids.agent_token, read_timeout_s=5)
        self.reporter = Reporter(engine=self.engine, fulcrum=client, state=self.state)

    def ordered(self, *, claimed: bool = True) -> Json:
        """Order a service; return its create job, claimed at FulcrumCore."""
        number = next(VMIDS)
        service = self.world.order(self.world.group(f"group-{number}"), name=f"web-{number}")
        return self.world.claimed(service) if claimed else self.world.job_of(service)

    def ended(self, job: Json, result: JobResult) -> int:
        """Write down how the job ended here; return our number."""
        with transaction(self.engine) as session:
            submitted = new_job(fulcrum_id=job["id"], service_id=job["serviceId"], action=job["action"])
            job_queue.submit(session, submitted)
            mine = job_queue.claim(session, "me", lease_s=30)
            assert mine is not None
            job_queue.finish(session, job_queue.lease_of(mine), result)
        return mine.id

    def row(self, job_id: int) -> Job:
        with reading(self.engine) as session:
            return session.get_one(Job, job_id)

    def turn(self, times: int = 1) -> float:
        """Let the reporter take turns, whatever pause it would make between them."""
        pause_s = 0.0
        for _ in range(times):
            with transaction(self.engine) as session:
                session.execute(update(Job).values(report_after=None))
            pause_s = self.reporter.turn()
        return pause_s

    def at_core(self, job: Json) -> Json:
        return dict(self.world.admin.call("GET", f"/jobs/{job['id']}"))

    def told(self, job: Json) -> list[tuple[str, int | None]]:
        """Return every report of a job that FulcrumCore saw, and its answer."""
        calls = self.world.sim.history(method="POST")
        return [
            (call["path"].rsplit("/", 1)[1], call["status"])
            for call in calls
            if call["path"].endswith((f"/{job['id']}/complete", f"/{job['id']}/fail"))
        ]


@pytest.fixture(scope="module")
def sim() -> Iterator[RunningSimulator]:
    with running_simulator() as simulator:
        yield simulator


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return migrated_sqlite_file(tmp_path_factory.mktemp("outbox"))


@pytest.fixture
def outbox(sim: RunningSimulator, template: Path, tmp_path: Path) -> Iterator[Outbox]:
    shutil.copyfile(template, tmp_path / "smith.db")
    engine, world = open_engine(f"sqlite:///{tmp_path / 'smith.db'}"), World(sim)
    yield Outbox(world, engine)
    world.close()
    engine.dispose()


# --- what is told -------------------------------------------------------------------------------------------------


def test_a_success_is_told_with_instance_data_and_properties(outbox: Outbox) -> None:
    job = outbox.ordered()
    result = made(ip_addresses=["192.0.2.7"], snapshot="smith-1")
    job_id = outbox.ended(job, result)
    assert outbox.turn() == 0.0
    vmid = result.vm["vmid"]
    service = outbox.world.admin.get_service(job["serviceId"])
    assert service["agentInstanceId"] == f"{outbox.world.ids.agent_id}/{vmid}"
    made_as = {"vmid": vmid, "node": "pve1", "name": "web-1", "mac_address": "BC:24:11:00:00:01"}
    assert service["agentInstanceData"] == made_as | {"ip_addresses": ["192.0.2.7"], "snapshot": "smith-1"}
    told = {"vmid": vmid, "node": "pve1", "macAddress": "BC:24:11:00:00:01", "ipAddresses": ["192.0.2.7"]}
    assert (told | {"lastSnapshot": "smith-1"}).items() <= service["properties"].items()
    row = outbox.row(job_id)
    assert (row.report_state, row.report_note, row.report_after) == ("reported", None, None)
    assert row.reported_at is not None
    assert outbox.state.poll_wanted.is_set(), "FulcrumCore shows the group's next job only now"


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
def test_what_a_completion_says_depends_on_action_and_vm(action: str, vm: Json, members: set[str]) -> None:
    """An update's properties become the job's params at FulcrumCore: ours would be lost. A VM that is gone has none."""
    said = completion(Job(action=action, result=vm), "agent")
    assert set(said) == members
    assert said.get("agent_instance_data", {}) == {name: vm[name] for name in vm if name != "status"} or not members


def test_a_vm_that_is_kept_a_while_after_its_deletion_is_told_without_its_instance_id() -> None:
    vm = {"vmid": 101, "node": "pve1", "name": "web", "delete_at": 1_800_000_000, "status": "stopped", "cores": 2}
    kept = {"vmid": 101, "node": "pve1", "name": "web", "delete_at": 1_800_000_000}
    assert completion(Job(action="delete", result=vm), "agent") == {"agent_instance_data": kept}
    assert completion(Job(action="delete", result={"vmid": 101, "status": "absent"}), "agent") == {}


def test_a_failure_is_told_in_our_words(outbox: Outbox) -> None:
    job = outbox.ordered()
    outbox.ended(job, FAILED)
    outbox.turn()
    assert outbox.at_core(job)["errorMessage"] == "CAPACITY: the storage is full (run create-1)"


def test_nothing_due_is_looked_at_again_before_long(outbox: Outbox) -> None:
    assert outbox.turn() == IDLE_WAIT_S
    assert not outbox.state.poll_wanted.is_set()


def test_many_reports_are_told_in_one_turn_over_connections_that_stay(outbox: Outbox) -> None:
    jobs = [outbox.ordered() for _ in range(3 * SENDERS)]
    for job in jobs:
        outbox.ended(job, made())
    outbox.turn()
    assert {outbox.at_core(job)["status"] for job in jobs} == {"Completed"}


# --- a refusal is not believed before FulcrumCore was asked ---------------------------------------------------------


@pytest.mark.parametrize("result", [made(), FAILED], ids=["success", "failure"])
def test_a_report_that_had_been_heard_is_settled_by_a_look(outbox: Outbox, result: JobResult) -> None:
    job = outbox.ordered()
    outbox.world.sim.fault("drop_after", method="POST", path=r"/(complete|fail)$", times=1)
    job_id = outbox.ended(job, result)
    outbox.turn(2)
    assert [status for _what, status in outbox.told(job)] == [None, 400]
    row = outbox.row(job_id)
    assert (row.report_state, row.report_note) == ("reported", "an earlier report had been accepted")


@pytest.mark.parametrize("result", [made(), FAILED], ids=["success", "failure"])
def test_a_job_that_fulcrumcore_gave_up_keeps_our_outcome_as_orphaned(outbox: Outbox, result: JobResult) -> None:
    job = outbox.ordered()
    outbox.world.sim.expire_job(job["id"])
    job_id = outbox.ended(job, result)
    outbox.turn()
    row = outbox.row(job_id)
    assert row.report_state == "overtaken"
    assert row.report_note == "FulcrumCore has the job as Failed; the outcome here is kept"
    assert row.status == ("completed" if result.succeeded else "failed")


def test_a_failure_of_a_job_that_somebody_completed_is_orphaned(outbox: Outbox) -> None:
    job = outbox.ordered()
    assert outbox.world.agent.complete(job).status_code == 204
    job_id = outbox.ended(job, FAILED)
    outbox.turn()
    assert outbox.row(job_id).report_state == "overtaken"
    assert outbox.told(job) == [("complete", 204), ("fail", 400)]


def test_a_job_that_was_never_claimed_is_claimed_and_told(outbox: Outbox) -> None:
    job = outbox.ordered(claimed=False)
    job_id = outbox.ended(job, FAILED)
    outbox.turn()
    assert outbox.at_core(job)["status"] == "Failed"
    assert outbox.row(job_id).report_state == "reported"


def test_properties_that_the_service_type_refuses_are_left_out(outbox: Outbox) -> None:
    job = outbox.ordered()
    job_id = outbox.ended(job, made(**ODD_MAC))
    outbox.turn()
    assert outbox.at_core(job)["status"] == "Completed"
    row = outbox.row(job_id)
    assert row.report_state == "reported"
    assert str(row.report_note).startswith("without properties: ")
    assert "macAddress" not in outbox.world.admin.get_service(job["serviceId"])["properties"]


def test_a_completion_that_is_refused_altogether_becomes_a_failure(outbox: Outbox) -> None:
    job = outbox.ordered()
    outbox.world.sim.fault("status", status=400, method="POST", path="/complete$")
    job_id = outbox.ended(job, made())
    outbox.turn()
    assert outbox.told(job) == [("complete", 400), ("complete", 400), ("fail", 204)]
    row = outbox.row(job_id)
    assert (row.status, row.error_code, row.report_state) == ("failed", "INVALID_REQUEST", "reported")
    assert outbox.at_core(job)["errorMessage"] == row.error_message
    assert str(row.error_message).startswith("INVALID_REQUEST: FulcrumCore refuses the result: ")


def test_a_completion_and_the_failure_in_its_place_both_refused_leave_it_orphaned(outbox: Outbox) -> None:
    job = outbox.ordered()
    outbox.world.sim.fault("status", status=400, method="POST", path=r"/(complete|fail)$")
    job_id = outbox.ended(job, made())
    outbox.turn()
    row = outbox.row(job_id)
    assert (row.status, row.report_state) == ("completed", "overtaken")


def test_a_failure_that_is_refused_while_the_job_is_ours_is_tried_again(outbox: Outbox) -> None:
    job = outbox.ordered()
    outbox.world.sim.fault("status", status=400, method="POST", path="/fail$", times=1)
    job_id = outbox.ended(job, FAILED)
    outbox.turn()
    assert (outbox.row(job_id).report_state, outbox.row(job_id).report_attempts) == ("due", 1)
    assert str(outbox.row(job_id).report_note).startswith("the failure was refused: ")
    outbox.turn()
    assert outbox.row(job_id).report_state == "reported"


def test_a_claim_that_is_refused_between_two_questions_is_tried_again(outbox: Outbox) -> None:
    job = outbox.ordered(claimed=False)
    outbox.world.sim.fault("status", status=400, method="POST", path="/claim$", times=1)
    job_id = outbox.ended(job, made())
    outbox.turn()
    row = outbox.row(job_id)
    assert (row.report_state, row.report_attempts) == ("due", 1)
    assert row.report_note
    assert outbox.state.fulcrum.is_up, "it answered, about this job"
    outbox.turn()
    assert outbox.row(job_id).report_state == "reported"


def test_each_report_is_logged_with_its_job_and_one_that_was_not_taken_is_an_error(outbox: Outbox) -> None:
    job, given_up = outbox.ordered(), outbox.ordered()
    assert outbox.world.agent.complete(given_up).status_code == 204
    outbox.ended(job, made())
    outbox.ended(given_up, FAILED)
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
        outbox.turn()
    told = {entry["job_id"]: entry for entry in logs if entry["event"] == "job_reported"}
    assert told[job["id"]] == {
        **{"event": "job_reported", "log_level": "info", "report_state": "reported", "note": None},
        **{"status": "completed", "action": "create", "job_id": job["id"], "service_id": job["serviceId"]},
    }
    entry = told[given_up["id"]]
    assert (entry["log_level"], entry["report_state"], entry["status"]) == ("error", "overtaken", "failed")
    assert entry["note"] == "FulcrumCore has the job as Completed; the outcome here is kept"


def test_an_instance_that_another_service_holds_is_told_as_a_failure_after_some_patience(outbox: Outbox) -> None:
    """FulcrumCore answers 500 for ever: instance ids are unique over its whole database."""
    result = made()
    outbox.world.created(f"{outbox.world.ids.agent_id}/{result.vm['vmid']}")
    job = outbox.ordered()
    job_id = outbox.ended(job, result)
    outbox.turn(MAX_COMPLETIONS)
    assert (outbox.row(job_id).report_state, outbox.row(job_id).report_attempts) == ("due", MAX_COMPLETIONS)
    assert outbox.state.fulcrum.is_up, "it answered, about this job"
    outbox.turn()
    row = outbox.row(job_id)
    assert (row.status, row.error_code, row.report_state) == ("failed", "INVALID_REQUEST", "reported")
    assert "FulcrumCore cannot store the result" in str(row.report_note)


# --- FulcrumCore is away ------------------------------------------------------------------------------------------


def test_an_outage_postpones_and_the_pause_grows_to_a_minute(outbox: Outbox) -> None:
    job = outbox.ordered()
    job_id = outbox.ended(job, made())
    outbox.world.sim.fault("status", status=503)
    pauses = []
    for _ in range(9):
        before = utc_now()
        loop_pause_s = outbox.turn()
        row = outbox.row(job_id)
        assert row.report_state == "due"
        assert row.report_after is not None
        pauses.append(((row.report_after - before).total_seconds(), loop_pause_s))
    assert outbox.row(job_id).report_attempts == 9
    assert not outbox.state.fulcrum.is_up
    assert "503" in outbox.state.fulcrum.reason
    for attempt, (row_pause_s, loop_pause_s) in enumerate(pauses):
        longest_s = min(2.0**attempt, 60.0)
        assert longest_s * 0.5 - 0.1 <= row_pause_s <= longest_s + 1
        assert min(2.0 ** (attempt + 1), 60.0) * 0.5 <= loop_pause_s <= min(2.0 ** (attempt + 1), 60.0)
    assert not outbox.state.poll_wanted.is_set()
    outbox.world.sim.clear_faults()
    assert outbox.turn() == 0.0
    assert outbox.state.fulcrum.is_up
    assert outbox.row(job_id).report_state == "reported"


def test_the_pause_that_fulcrumcore_asks_for_is_kept(outbox: Outbox) -> None:
    job_id = outbox.ended(outbox.ordered(), made())
    outbox.world.sim.fault("status", status=429, path="/complete$", times=1, headers={"Retry-After": "40"})
    before = utc_now()
    outbox.turn()
    after = outbox.row(job_id).report_after
    assert after is not None
    assert (after - before).total_seconds() >= 40


def test_when_it_answers_again_all_that_waits_is_due_at_once(outbox: Outbox) -> None:
    first, *others = [outbox.ended(outbox.ordered(), made()) for _ in range(4)]
    outbox.state.fulcrum.note_down("away")
    with transaction(outbox.engine) as session:
        for job_id in others:
            postpone_report(session, job_id, backoff_s=3600, note="away")
    assert outbox.reporter.turn() == 0.0
    assert outbox.row(first).report_state == "reported"
    assert outbox.reporter.turn() == 0.0
    assert {outbox.row(job_id).report_state for job_id in others} == {"reported"}


def test_a_job_that_fulcrumcore_does_not_know_any_more_is_abandoned(outbox: Outbox) -> None:
    job = outbox.ordered()
    job_id = outbox.ended(job, made())
    outbox.world.sim.delete_job(job["id"])
    outbox.turn()
    row = outbox.row(job_id)
    assert (row.report_state, row.report_note) == (
        "abandoned",
        "FulcrumCore does not know the job any more, or it is not ours",
    )


def test_a_token_that_is_refused_for_everything_abandons_nothing(outbox: Outbox) -> None:
    job_id = outbox.ended(outbox.ordered(), made())
    outbox.world.sim.fault("status", status=403, path="^/api/")
    outbox.turn()
    assert outbox.row(job_id).report_state == "due"
    assert not outbox.state.fulcrum.is_up


def test_a_403_that_is_over_when_the_job_is_looked_at_is_no_verdict(outbox: Outbox) -> None:
    """FulcrumCore says 403 for a job that is gone, and also while its database is away."""
    job = outbox.ordered()
    job_id = outbox.ended(job, made())
    outbox.world.sim.fault("status", status=403, method="POST", path="/complete$", times=1)
    outbox.turn()
    assert outbox.row(job_id).report_state == "due"
    assert outbox.state.fulcrum.is_up
    outbox.turn()
    assert outbox.row(job_id).report_state == "reported"
    assert outbox.at_core(job)["status"] == "Completed"


def test_a_flush_before_leaving_sends_what_is_due_and_says_if_something_is_left(outbox: Outbox) -> None:
    job_id = outbox.ended(outbox.ordered(), made())
    assert outbox.reporter.flush(10)
    assert outbox.row(job_id).report_state == "reported"
    outbox.ended(outbox.ordered(), made())
    outbox.world.sim.fault("status", status=503)
    assert not outbox.reporter.flush(1)


# --- any order ------------------------------------------------------------------------------------------------------


class Reports(RuleBasedStateMachine):
    """Jobs end, FulcrumCore loses answers, times out and errs, and the reporter is started anew at any time."""

    sim: RunningSimulator
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
        self.gone: set[str] = set()
        self.mine: dict[str, int] = {}

    @rule(target=jobs)
    def order(self) -> Json:
        return self.outbox.ordered()

    @rule(job=consumes(jobs), result=st.sampled_from(["made", "failed", "odd"]))
    def end(self, job: Json, result: str) -> None:
        results = {"made": made(), "failed": FAILED, "odd": made(**ODD_MAC)}
        self.mine[job["id"]] = self.outbox.ended(job, results[result])

    @rule(job=jobs)
    def time_out(self, job: Json) -> None:
        if job["id"] not in self.gone:
            self.gone.add(job["id"])
            self.sim.expire_job(job["id"])

    @rule(
        kind=st.sampled_from(["drop_after", "drop_before", "truncate", "html", "empty"]),
        path=st.sampled_from([r"/complete$", r"/fail$", r"/jobs/[^/]+$"]),
        times=st.integers(1, 3),
    )
    def fault(self, kind: str, path: str, times: int) -> None:
        self.sim.fault(kind, path=path, times=times)

    @rule(status=st.sampled_from([400, 403, 500, 503]), times=st.integers(1, 4))
    def refuse(self, status: int, times: int) -> None:
        self.sim.fault("status", status=status, method="POST", path=r"/(complete|fail)$", times=times)

    @rule()
    def turn(self) -> None:
        self.outbox.turn()

    @rule()
    def restart(self) -> None:
        self.outbox.restart()

    @invariant()
    def nobody_was_told_two_outcomes(self) -> None:
        for job_id in getattr(self, "mine", {}):
            accepted = {what for what, status in self.outbox.told({"id": job_id}) if status == 204}
            assert len(accepted) <= 1

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        self.sim.clear_faults()
        self.outbox.turn(MAX_COMPLETIONS + 2)
        for job_id, number in self.mine.items():
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
def _for_the_machine(sim: RunningSimulator, template: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    Reports.sim, Reports.template, Reports.folder = sim, template, tmp_path_factory.mktemp("machine")


class TestReports(Reports.TestCase):  # type: ignore[name-defined,misc]
    """Hypothesis's own test, with as much of it as a few seconds allow."""

    settings = settings(
        max_examples=12,
        stateful_step_count=25,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
