"""F11 to F14: FulcrumCore is unavailable, times out jobs, refuses the token or limits the request rate."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from faults.conftest import MakeSystem
from faults.system import SystemUnderTest
from smith_lab.fulcrum_setup import add_agent
from smith_lab.system import outcome_of
from sqlalchemy import update

from executor.agent.refusals import Http403Counter
from executor.agent.reporter import Reporter
from executor.agent.state import AgentState
from executor.database import job_queue, outbox, queries
from executor.database.engine import open_engine, transaction
from executor.database.schema import upgrade
from executor.database.tables.jobs import Job
from executor.fulcrum.client import FulcrumClient
from executor.model import JobResult

OUTAGES = {
    "refused": None,
    "500": {"kind": "status", "status": 500},
    "403 on everything": {"kind": "status", "status": 403},
    "a proxy's page": {"kind": "html", "status": 502},
    "no response": {"kind": "drop_before"},
    "a truncated response": {"kind": "truncate"},
}


@pytest.mark.parametrize("outage", OUTAGES)
def test_f11_fulcrumcore_fails_while_a_job_runs(system: SystemUnderTest, outage: str) -> None:
    """FulcrumCore responds with 5xx, 403, an HTML page, a truncated response or nothing while a job ends
    → the report is sent when FulcrumCore recovers.
    """
    fault = OUTAGES[outage]
    service_id = system.order_service(f"f11-{list(OUTAGES).index(outage)}")
    system.wait_until(lambda: system.clone_requests_of(service_id), "the clone to begin")
    event = "fulcrum_token_refused" if "403" in outage else "fulcrum_stopped_answering"
    outages_before = len(system.lab.log_events(event))
    if fault is None:
        system.lab.core.pause()
    else:
        system.lab.core.add_fault(path="^/api/", **fault)
    system.wait_for_log(event, outages_before + 1)
    ended = "SELECT 1 FROM jobs WHERE service_id = ? AND finished_at IS NOT NULL"
    system.wait_until(lambda: system.rows(ended, service_id), "the outcome in the outbox")
    (system.lab.core.resume if fault is None else system.lab.core.clear_faults)()
    assert system.wait_for_jobs(service_id)["status"] == "Stopped"
    system.assert_consistent()
    assert len(system.lab.log_events(event)) == outages_before + 1, "one log line per outage"
    assert system.lab.executor.poll() is None


@pytest.mark.parametrize("call", ["claim", "complete"])
def test_f11_a_single_403_response_does_not_abandon_the_job(system: SystemUnderTest, call: str) -> None:
    """One request about a job gets 403, as during an outage of FulcrumCore's database → the job continues."""
    system.lab.core.add_fault("status", status=403, method="POST", path=f"/{call}$", times=1)
    service_id = system.order_service(f"f11-403-{call}")
    assert system.wait_for_jobs(service_id)["status"] == "Stopped"
    assert not [event for event in system.lab.log_events("job_abandoned") if event["service_id"] == service_id]
    system.assert_consistent()


DAY_S = 24 * 3600
JOBS_OF_A_DAY = 300


def test_f11_r9_the_reports_of_a_day_are_sent_oldest_first_when_fulcrumcore_recovers(
    make_system: MakeSystem, tmp_path: Path
) -> None:
    """FulcrumCore was unavailable for a day
    → all due reports are sent, oldest first, without waiting for their backoffs.
    """
    system = make_system()
    engine = open_engine(f"sqlite:///{tmp_path / 'outbox.db'}")
    upgrade(engine)
    fulcrum = FulcrumClient(system.lab.core.url, lambda: system.lab.ids.agent_token)
    now = datetime.now(UTC)
    job_ids = [str(system.last_job(system.order_service(f"day-{number}"))["id"]) for number in range(JOBS_OF_A_DAY)]
    for number, job_id in enumerate(job_ids):
        fulcrum.claim_job(job_id)
        ended_at = now - timedelta(seconds=DAY_S * (1 - number / JOBS_OF_A_DAY))
        _store_finished_job(engine, job_id, ended_at)
    state = AgentState(agent_id=system.lab.ids.agent_id)
    reporter = Reporter(engine=engine, fulcrum=fulcrum, state=state, http_403_counter=Http403Counter(fulcrum=fulcrum))

    state.fulcrum_link.record_failed_call("for a day")
    with transaction(engine) as session:  # the backoff of the oldest report ends, as it does within a minute
        first = queries.list_jobs(session, statuses=(), limit=JOBS_OF_A_DAY)[-1]
        session.execute(update(Job).where(Job.id == first.id).values(report_after=None))
    turns = 0
    while _reports_due(engine) and turns < 2 * JOBS_OF_A_DAY:
        reporter.send_due_reports()
        turns += 1

    assert turns <= JOBS_OF_A_DAY / 50 + 2, "a turn sends fifty reports, and no report waits for its own backoff"
    reported = [call for call in system.lab.core.history(method="POST") if call["path"].endswith("/fail")]
    assert [call["status"] for call in reported] == [204] * JOBS_OF_A_DAY
    positions = {call["path"].split("/")[-2]: position for position, call in enumerate(reported)}
    assert all(abs(positions[job_id] - number) < 50 for number, job_id in enumerate(job_ids)), "not oldest first"
    engine.dispose()


def _store_finished_job(engine: object, job_id: str, ended_at: datetime) -> None:
    from support.databases import new_job  # noqa: PLC0415 (PostgreSQL's driver, for one helper)

    with transaction(engine) as session:  # type: ignore[arg-type]
        job_queue.submit(session, new_job(fulcrum_id=job_id))
        job = job_queue.claim(session, "a-day-ago", lease_s=30)
        assert job is not None
        job_queue.finish(session, job_queue.lease_of(job), JobResult(succeeded=False, code="CAPACITY", detail="full"))
        outbox.postpone_report(session, job.id, backoff_s=3600, note="FulcrumCore does not answer")
        session.execute(update(Job).where(Job.id == job.id).values(finished_at=ended_at))


def _reports_due(engine: object) -> int:
    with transaction(engine) as session:  # type: ignore[arg-type]
        return queries.count_jobs(session)["reports_due"]


def test_f12_fulcrumcore_times_out_a_job_during_its_clone(system: SystemUnderTest) -> None:
    """FulcrumCore times out the job during its clone → the result is kept, and the next create finds the VM."""
    service_id = system.order_service("f12")
    system.wait_until(lambda: system.clone_requests_of(service_id), "the clone to begin")
    job_id = system.expire_last_job(service_id)
    system.wait_until(
        lambda: system.rows("SELECT 1 FROM jobs WHERE fulcrum_id = ? AND report_state = 'overtaken'", job_id),
        "the overtaken report",
    )
    assert system.lab.admin.get_service(service_id)["status"] == "New"
    found = {finding["kind"] for finding in system.drift()["findings"] if finding["service_id"] == service_id}
    assert found == {"mapping_unreported"}
    assert outcome_of(system.lab.run_action(service_id, "create")) == "Completed"
    assert len(system.clone_requests_of(service_id)) == 1
    system.assert_consistent()


def test_f12_a_service_whose_create_timed_out_can_be_deleted(system: SystemUnderTest) -> None:
    """FulcrumCore times out a create that later succeeds, and the user deletes the service → the VM is deleted."""
    service_id = system.order_service("f12-gone")
    system.wait_until(lambda: system.clone_requests_of(service_id), "the clone to begin")
    system.expire_last_job(service_id)
    system.wait_until(lambda: system.lab.guests_of(service_id), "the VM")
    assert outcome_of(system.lab.run_action(service_id, "delete")) == "Completed"
    assert not system.lab.guests_of(service_id)
    system.assert_consistent()


def test_f13_the_token_is_revoked_and_replaced(make_system: MakeSystem) -> None:
    """FulcrumCore refuses the token
    → running jobs continue and no job is claimed; with the new token file claiming resumes.
    """
    system = make_system(time_scale=0.2)
    secrets = system.lab.folder / "secrets"
    secrets.mkdir(mode=0o700)
    (secrets / "fulcrum_api_token").write_text(system.lab.ids.agent_token)
    system.lab.settings |= {"FULCRUM_API_TOKEN": "", "SMITH_SECRETS_DIR": str(secrets)}
    system.start()
    running = system.order_service("f13-running")
    system.wait_until(lambda: system.clone_requests_of(running), "the clone to begin")

    system.lab.core.revoke_tokens(value=system.lab.ids.agent_token)
    waiting = system.order_service("f13-waiting")
    system.wait_for_log("fulcrum_token_refused")
    system.wait_until(lambda: system.lab.guests_of(running), "the running job's VM")
    assert system.last_job(waiting)["status"] == "Pending"
    assert not system.lab.guests_of(waiting)
    new_token = str(system.lab.admin.create_token("second", "agent", system.lab.ids.agent_id)["value"])
    (secrets / "fulcrum_api_token").write_text(new_token)

    assert [system.wait_for_jobs(service_id)["status"] for service_id in (running, waiting)] == ["Stopped"] * 2
    system.assert_consistent()


def test_f13_the_token_file_gets_the_token_of_another_agent(make_system: MakeSystem) -> None:
    """The agent is deleted and created again in FulcrumCore → the executor restarts with the new identity."""
    system = make_system()
    secrets = system.lab.folder / "secrets"
    secrets.mkdir(mode=0o700)
    (secrets / "fulcrum_api_token").write_text(system.lab.ids.agent_token)
    system.lab.settings |= {"FULCRUM_API_TOKEN": "", "SMITH_SECRETS_DIR": str(secrets)}
    system.start()
    system.wait_for_log("agent_identified")

    ids = system.lab.ids
    new_id, new_token = add_agent(
        system.lab.admin, name="again", provider_id=ids.provider_id, agent_type_id=ids.agent_type_id
    )
    (secrets / "fulcrum_api_token").write_text(new_token)
    system.lab.core.revoke_tokens(value=ids.agent_token)

    system.wait_for_log("agent_identity_changed")
    system.wait_for_log("agent_identified", 2)
    assert [event["agent_id"] for event in system.lab.log_events("agent_identified")] == [ids.agent_id, new_id]


def test_f14_a_429_response_delays_the_report_by_its_retry_after(system: SystemUnderTest) -> None:
    """A report gets 429 with Retry-After → it is not sent again before that time."""
    retry_after_s = 4
    system.lab.core.add_fault(
        "status", status=429, method="POST", path="/complete$", times=1, headers={"Retry-After": str(retry_after_s)}
    )
    service_id = system.order_service("f14")
    assert system.wait_for_jobs(service_id)["status"] == "Stopped"
    first, second = system.lab.reports(system.last_job(service_id)["id"])
    assert (first["status"], second["status"]) == (429, 204)
    assert second["time"] - first["time"] >= retry_after_s
    system.assert_consistent()
