"""F11 to F14: FulcrumCore is away, gives jobs up, refuses the token, or asks for patience."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from faults.conftest import MakeRig
from faults.rig import Rig
from smith_lab.system import outcome_of
from sqlalchemy import update

from executor.agent.reporter import Reporter
from executor.agent.state import AgentState
from executor.database import job_queue, outbox, queries
from executor.database.engine import open_engine, transaction
from executor.database.schema import upgrade
from executor.database.tables import Job
from executor.fulcrum.client import FulcrumClient
from executor.model import JobResult

OUTAGES = {
    "refused": None,
    "500": {"kind": "status", "status": 500},
    "403 on everything": {"kind": "status", "status": 403},
    "a proxy's page": {"kind": "html", "status": 502},
    "no answer": {"kind": "drop_before"},
    "half an answer": {"kind": "truncate"},
}


@pytest.mark.parametrize("outage", OUTAGES)
def test_f11_fulcrumcore_fails_while_a_job_runs(rig: Rig, outage: str) -> None:
    """FulcrumCore answers 5xx, 403, a page, half an answer or nothing while a job ends → reported once it is back."""
    rule = OUTAGES[outage]
    service_id = rig.order(f"f11-{list(OUTAGES).index(outage)}")
    rig.until(lambda: rig.clones_of(service_id), "the clone to begin")
    downs = len(rig.lab.log_events("fulcrum_stopped_answering"))
    if rule is None:
        rig.lab.core.pause()
    else:
        rig.lab.core.fault(path="^/api/", **rule)
    rig.logged("fulcrum_stopped_answering", downs + 1)
    ended = "SELECT 1 FROM jobs WHERE service_id = ? AND finished_at IS NOT NULL"
    rig.until(lambda: rig.rows(ended, service_id), "the outcome in the outbox")
    (rig.lab.core.resume if rule is None else rig.lab.core.clear_faults)()
    assert rig.wait_for_jobs(service_id)["status"] == "Stopped"
    rig.prove()
    assert len(rig.lab.log_events("fulcrum_stopped_answering")) == downs + 1, "one line a change of state"
    assert rig.lab.executor.poll() is None


@pytest.mark.parametrize("call", ["claim", "complete"])
def test_f11_a_single_403_response_does_not_abandon_the_job(rig: Rig, call: str) -> None:
    """One call about a job is answered 403, as during an outage of FulcrumCore's database → the job goes on."""
    rig.lab.core.fault("status", status=403, method="POST", path=f"/{call}$", times=1)
    service_id = rig.order(f"f11-403-{call}")
    assert rig.wait_for_jobs(service_id)["status"] == "Stopped"
    assert not [event for event in rig.lab.log_events("job_abandoned") if event["service_id"] == service_id]
    rig.prove()


DAY_S = 24 * 3600
JOBS_OF_A_DAY = 300


def test_f11_r9_the_reports_of_a_day_are_sent_at_once_when_fulcrumcore_recovers(
    make_rig: MakeRig, tmp_path: Path
) -> None:
    """FulcrumCore was away for a day → everything due is delivered at once, not when each one's back-off ends."""
    rig = make_rig()
    engine = open_engine(f"sqlite:///{tmp_path / 'outbox.db'}")
    upgrade(engine)
    fulcrum = FulcrumClient(rig.lab.core.url, lambda: rig.lab.ids.agent_token)
    now = datetime.now(UTC)
    for number in range(JOBS_OF_A_DAY):
        job_id = rig.last_job(rig.order(f"day-{number}"))["id"]
        fulcrum.claim_job(job_id)
        ended_at = now - timedelta(seconds=DAY_S * (1 - number / JOBS_OF_A_DAY))
        _ended_long_ago(engine, job_id, ended_at)
    state = AgentState(agent_id=rig.lab.ids.agent_id)
    reporter = Reporter(engine=engine, fulcrum=fulcrum, state=state)

    state.fulcrum.note_down("for a day")
    with transaction(engine) as session:  # the oldest one's back-off ends, as it does within a minute
        first = queries.list_jobs(session, statuses=(), limit=JOBS_OF_A_DAY)[-1]
        session.execute(update(Job).where(Job.id == first.id).values(report_after=None))
    turns = 0
    while _due(engine) and turns < 2 * JOBS_OF_A_DAY:
        reporter.turn()
        turns += 1

    assert turns <= JOBS_OF_A_DAY / 50 + 2, "a turn takes fifty, and none waits for its own pause"
    told = [call for call in rig.lab.core.history(method="POST") if call["path"].endswith("/fail")]
    assert [call["status"] for call in told] == [204] * JOBS_OF_A_DAY
    engine.dispose()


def _ended_long_ago(engine: object, job_id: str, ended_at: datetime) -> None:
    from support.databases import new_job  # noqa: PLC0415 (PostgreSQL's driver, for one helper)

    with transaction(engine) as session:  # type: ignore[arg-type]
        job_queue.submit(session, new_job(fulcrum_id=job_id))
        job = job_queue.claim(session, "a-day-ago", lease_s=30)
        assert job is not None
        job_queue.finish(session, job_queue.lease_of(job), JobResult(succeeded=False, code="CAPACITY", detail="full"))
        outbox.postpone_report(session, job.id, backoff_s=3600, note="FulcrumCore does not answer")
        session.execute(update(Job).where(Job.id == job.id).values(finished_at=ended_at))


def _due(engine: object) -> int:
    with transaction(engine) as session:  # type: ignore[arg-type]
        return queries.count_jobs(session)["reports_due"]


def test_f12_fulcrumcore_times_out_a_job_during_its_clone(rig: Rig) -> None:
    """FulcrumCore fails the job while its clone runs → the result is kept, and the next create finds the VM."""
    service_id = rig.order("f12")
    rig.until(lambda: rig.clones_of(service_id), "the clone to begin")
    job_id = rig.time_out(service_id)
    rig.until(lambda: rig.rows("SELECT 1 FROM jobs WHERE fulcrum_id = ? AND report_state = 'overtaken'", job_id), "it")
    assert rig.lab.admin.get_service(service_id)["status"] == "New"
    found = {finding["kind"] for finding in rig.drift()["findings"] if finding["service_id"] == service_id}
    assert found == {"mapping_unreported"}
    assert outcome_of(rig.lab.run_action(service_id, "create")) == "Completed"
    assert len(rig.clones_of(service_id)) == 1
    rig.prove()


def test_f12_a_service_whose_create_timed_out_can_be_deleted(rig: Rig) -> None:
    """FulcrumCore fails a create that succeeds, and the user deletes → the VM that FulcrumCore never knew is gone."""
    service_id = rig.order("f12-gone")
    rig.until(lambda: rig.clones_of(service_id), "the clone to begin")
    rig.time_out(service_id)
    rig.until(lambda: rig.lab.vms_of(service_id), "the VM")
    assert outcome_of(rig.lab.run_action(service_id, "delete")) == "Completed"
    assert not rig.lab.vms_of(service_id)
    rig.prove()


def test_f13_the_token_is_revoked_and_replaced(make_rig: MakeRig) -> None:
    """FulcrumCore refuses the token → nothing new is claimed, what runs goes on; with the new file all goes on."""
    rig = make_rig(time_scale=0.2)
    secrets = rig.lab.folder / "secrets"
    secrets.mkdir(mode=0o700)
    (secrets / "fulcrum_api_token").write_text(rig.lab.ids.agent_token)
    rig.lab.settings |= {"FULCRUM_API_TOKEN": "", "SMITH_SECRETS_DIR": str(secrets)}
    rig.start()
    running = rig.order("f13-running")
    rig.until(lambda: rig.clones_of(running), "the clone to begin")

    rig.lab.core.revoke_token(value=rig.lab.ids.agent_token)
    waiting = rig.order("f13-waiting")
    rig.logged("fulcrum_stopped_answering")
    rig.until(lambda: rig.lab.vms_of(running), "the running job's VM")
    assert rig.last_job(waiting)["status"] == "Pending"
    assert not rig.lab.vms_of(waiting)
    new = str(rig.lab.admin.create_token("second", "agent", rig.lab.ids.agent_id)["value"])
    (secrets / "fulcrum_api_token").write_text(new)

    assert [rig.wait_for_jobs(service_id)["status"] for service_id in (running, waiting)] == ["Stopped"] * 2
    rig.prove()


def test_f14_a_429_response_delays_the_report_by_its_retry_after(rig: Rig) -> None:
    """A report is answered 429 with Retry-After → it is not repeated before that."""
    asked_s = 4
    rig.lab.core.fault(
        "status", status=429, method="POST", path="/complete$", times=1, headers={"Retry-After": str(asked_s)}
    )
    service_id = rig.order("f14")
    assert rig.wait_for_jobs(service_id)["status"] == "Stopped"
    first, second = rig.lab.reports(rig.last_job(service_id)["id"])
    assert (first["status"], second["status"]) == (429, 204)
    assert second["time"] - first["time"] >= asked_s
    rig.prove()
