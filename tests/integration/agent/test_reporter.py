"""What the reporter sends: the content of reports, and what it does when FulcrumCore refuses one.

`outbox.ended` stores the result of a job. In a round (`outbox.turn`), the reporter sends the due reports once. `made`
returns the successful result of a create. A report is overtaken if FulcrumCore itself has ended the job before.
"""

from __future__ import annotations

import pytest
import structlog
from sqlalchemy import update
from support.outbox_world import FAILED, INVALID_MAC, Json, Outbox, made

from executor.agent.poller import Poller
from executor.agent.report import add_left_out_property_names, completion_arguments
from executor.agent.reporter import (
    IDLE_WAIT_S,
    MAX_FAILED_COMPLETIONS,
    REFUSED_REPORT_BACKOFF_S,
    SENDER_THREADS,
)
from executor.database import reopening
from executor.database.engine import transaction
from executor.database.tables.jobs import Job
from executor.database.times import utc_now
from executor.fulcrum.vault import SecretResolver
from executor.model import JobResult


def test_a_success_is_reported_with_instance_data_and_properties(outbox: Outbox) -> None:
    job = outbox.ordered()
    result = made(ip_addresses=["192.0.2.7"], snapshot="smith-1")
    job_id = outbox.ended(job, result)
    assert outbox.turn() == 0.0
    vmid = result.vm["vmid"]
    service = outbox.world.admin.get_service(job["serviceId"])
    assert service["agentInstanceId"] == f"{outbox.world.ids.agent_id}/{vmid}"
    vm_data = {"vmid": vmid, "node": "pve1", "name": "web-1", "mac_address": "BC:24:11:00:00:01"}
    assert service["agentInstanceData"] == vm_data | {"ip_addresses": ["192.0.2.7"], "snapshot": "smith-1"}
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
    """After an update, FulcrumCore itself sets the properties to the job's params. A deleted VM has no properties."""
    sent = completion_arguments(Job(action=action, result=vm), "agent")
    assert set(sent) == members
    assert sent.get("agent_instance_data", {}) == {name: vm[name] for name in vm if name != "status"} or not members


def test_the_instance_data_names_the_properties_that_were_left_out_of_the_run(outbox: Outbox) -> None:
    job = outbox.ordered()
    outbox.ended(job, add_left_out_property_names(made(), ["ciPassword", "password", "ciPassword"]))
    outbox.turn()
    service = outbox.world.admin.get_service(job["serviceId"])
    assert service["agentInstanceData"]["left_out_properties"] == ["ciPassword", "password"]
    assert add_left_out_property_names(FAILED, []) == FAILED


def test_a_vm_in_its_grace_period_is_reported_without_an_instance_id() -> None:
    vm = {"vmid": 101, "node": "pve1", "name": "web", "delete_at": 1_800_000_000, "status": "stopped", "cores": 2}
    instance_data = {"vmid": 101, "node": "pve1", "name": "web", "delete_at": 1_800_000_000}
    assert completion_arguments(Job(action="delete", result=vm), "agent") == {"agent_instance_data": instance_data}
    assert completion_arguments(Job(action="delete", result={"vmid": 101, "status": "absent"}), "agent") == {}


def test_a_failure_is_reported_with_our_error_message(outbox: Outbox) -> None:
    job = outbox.ordered()
    outbox.ended(job, FAILED)
    outbox.turn()
    assert outbox.job_at_core(job)["errorMessage"] == "CAPACITY: the storage is full (run create-1)"


def test_without_due_reports_the_reporter_waits_for_the_idle_time(outbox: Outbox) -> None:
    assert outbox.turn() == IDLE_WAIT_S
    assert not outbox.state.poll_requested.is_set()


def test_many_reports_are_sent_in_one_round(outbox: Outbox) -> None:
    jobs = [outbox.ordered() for _ in range(3 * SENDER_THREADS)]
    for job in jobs:
        outbox.ended(job, made())
    outbox.turn()
    assert {outbox.job_at_core(job)["status"] for job in jobs} == {"Completed"}


@pytest.mark.parametrize("result", [made(), FAILED], ids=["success", "failure"])
def test_after_a_lost_response_the_job_in_fulcrumcore_shows_that_the_report_was_accepted(
    outbox: Outbox, result: JobResult
) -> None:
    job = outbox.ordered()
    outbox.world.sim.add_fault("drop_after", method="POST", path=r"/(complete|fail)$", times=1)
    job_id = outbox.ended(job, result)
    outbox.turn(2)
    assert [status for _what, status in outbox.reports(job)] == [None, 400]
    row = outbox.row(job_id)
    assert (row.report_state, row.report_note) == ("reported", "FulcrumCore had accepted an earlier report")


@pytest.mark.parametrize("result", [made(), FAILED], ids=["success", "failure"])
def test_a_job_that_fulcrumcore_has_timed_out_keeps_our_result_and_is_overtaken(
    outbox: Outbox, result: JobResult
) -> None:
    job = outbox.ordered()
    outbox.world.sim.expire_job(job["id"])
    job_id = outbox.ended(job, result)
    outbox.turn()
    row = outbox.row(job_id)
    assert row.report_state == "overtaken"
    assert (
        row.report_note
        == "FulcrumCore has ended the job itself (Failed); the agent's result is only in the agent's database"
    )
    assert row.status == ("completed" if result.succeeded else "failed")


def test_the_report_of_a_failure_is_overtaken_if_the_job_is_completed_in_fulcrumcore(outbox: Outbox) -> None:
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
    assert outbox.job_at_core(job)["status"] == "Failed"
    assert outbox.row(job_id).report_state == "reported"


def test_properties_that_the_service_type_refuses_are_left_out(outbox: Outbox) -> None:
    job = outbox.ordered()
    job_id = outbox.ended(job, made(**INVALID_MAC))
    outbox.turn()
    assert outbox.job_at_core(job)["status"] == "Completed"
    row = outbox.row(job_id)
    assert row.report_state == "reported"
    assert str(row.report_note).startswith("reported without properties: ")
    assert "macAddress" not in outbox.world.admin.get_service(job["serviceId"])["properties"]


def test_a_completion_that_is_refused_with_and_without_properties_is_reported_as_a_failure(outbox: Outbox) -> None:
    job = outbox.ordered()
    outbox.world.sim.add_fault("status", status=400, method="POST", path="/complete$")
    job_id = outbox.ended(job, made())
    outbox.turn()
    assert outbox.reports(job) == [("complete", 400), ("complete", 400), ("fail", 204)]
    row = outbox.row(job_id)
    assert (row.status, row.error_code, row.report_state) == ("failed", "RESULT_REFUSED", "reported")
    assert outbox.job_at_core(job)["errorMessage"] == row.error_message
    assert row.error_message == "RESULT_REFUSED: FulcrumCore does not accept the result of the job (HTTP 400)"


@pytest.mark.parametrize("member", ["error", "status", "errors"])
@pytest.mark.parametrize("status", [400, 409, 422, 500])
def test_no_text_of_fulcrumcore_is_sent_back_to_it(outbox: Outbox, status: int, member: str) -> None:
    """Consumers can read the error message, and FulcrumCore's texts may contain SQL, paths, or an error code."""
    text = "CAPACITY: duplicate key (SQLSTATE 23505) INSERT INTO services /srv/core/db.go"
    body = {"errors": [{"path": text, "message": text}]} if member == "errors" else {member: text}
    outbox.world.sim.add_fault("status", status=status, body=body, method="POST", path="/complete$")
    job = outbox.ordered()
    job_id = outbox.ended(job, made())
    outbox.turn(MAX_FAILED_COMPLETIONS + 1)

    sent = [call["body"] for call in outbox.world.sim.history(method="POST") if call["path"].endswith("/fail")]
    detail = f"FulcrumCore does not accept the result of the job (HTTP {status})"
    assert sent[-1] == {"errorMessage": f"RESULT_REFUSED: {detail}"}
    assert outbox.job_at_core(job)["errorMessage"] == f"RESULT_REFUSED: {detail}"
    assert outbox.row(job_id).error_message == f"RESULT_REFUSED: {detail}"
    assert "SQLSTATE" in str(outbox.row(job_id).report_note), "the operator finds the text in the row"


@pytest.mark.parametrize("result", [made(), FAILED])
def test_a_report_that_is_refused_while_the_job_is_processing_stays_due(outbox: Outbox, result: JobResult) -> None:
    """The service type no longer allows the end of the action. After the repair of the type, the report is accepted."""
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
        assert reopening.retry_now(session, job_id) == "report"
    outbox.turn()
    assert outbox.row(job_id).report_state == "reported"
    assert outbox.job_at_core(job)["status"] == ("Completed" if result.succeeded else "Failed")


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
        secret_resolver=SecretResolver(client),
        state=outbox.state,
        job_timeout_s=300,
        interval_s=2,
    )
    poller.poll()
    assert outbox.row(job_id).report_state == "due"
    outbox.turn()
    assert outbox.row(job_id).report_state == "reported"
    assert outbox.job_at_core(job)["status"] == "Completed"


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
    ("result", "refused_path", "note"),
    [
        (made(), "complete", "reported without properties: "),
        (made(), "(complete|fail)", "FulcrumCore refused the result, and then the report of a failure: "),
        (FAILED, "fail", "FulcrumCore refused the report of the failure: "),
    ],
    ids=["completion", "completion and failure", "failure"],
)
def test_the_note_of_a_refused_report_contains_the_answer_of_fulcrumcore(
    outbox: Outbox, result: JobResult, refused_path: str, note: str
) -> None:
    body, times = {"error": "the schema refuses it"}, 3 if refused_path == "(complete|fail)" else 1
    outbox.world.sim.add_fault("status", status=400, body=body, method="POST", path=f"/{refused_path}$", times=times)
    job_id = outbox.ended(outbox.ordered(), result)
    outbox.turn()
    stored_note = str(outbox.row(job_id).report_note)
    assert stored_note.startswith(note)
    assert "the schema refuses it" in stored_note


def test_the_first_postponement_of_a_report_is_logged_with_its_reason(outbox: Outbox) -> None:
    body = {"error": "the instance id exists"}
    outbox.world.sim.add_fault("status", status=500, body=body, method="POST", path="/complete$")
    job = outbox.ordered()
    job_id = outbox.ended(job, made())
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
        outbox.turn(2)
    (log_entry,) = [entry for entry in logs if entry["event"] == "report_postponed"]
    assert (log_entry["log_level"], log_entry["job_id"]) == ("warning", job["id"])
    assert "the instance id exists" in log_entry["reason"]
    assert log_entry["reason"] == outbox.row(job_id).report_note


def test_a_claim_that_is_refused_is_retried(outbox: Outbox) -> None:
    job = outbox.ordered(claimed=False)
    body = {"error": "the job is locked"}
    outbox.world.sim.add_fault("status", status=400, body=body, method="POST", path="/claim$", times=1)
    job_id = outbox.ended(job, made())
    outbox.turn()
    row = outbox.row(job_id)
    assert (row.report_state, row.report_attempts) == ("due", 1)
    assert "the job is locked" in str(row.report_note)
    assert outbox.state.fulcrum_link.is_up, "FulcrumCore has answered, so there is no outage"
    outbox.turn()
    assert (outbox.row(job_id).report_state, outbox.row(job_id).report_note) == ("reported", None)


def test_each_report_is_logged_and_an_overtaken_one_as_an_error(outbox: Outbox) -> None:
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
    assert (
        entry["note"]
        == "FulcrumCore has ended the job itself (Completed); the agent's result is only in the agent's database"
    )


def test_an_instance_id_of_another_service_becomes_a_failure_after_several_attempts(outbox: Outbox) -> None:
    """FulcrumCore answers each completion with 500, because instance ids are unique in its whole database."""
    result = made()
    outbox.world.created(f"{outbox.world.ids.agent_id}/{result.vm['vmid']}")
    job = outbox.ordered()
    job_id = outbox.ended(job, result)
    outbox.turn(MAX_FAILED_COMPLETIONS)
    assert (outbox.row(job_id).report_state, outbox.row(job_id).report_attempts) == ("due", MAX_FAILED_COMPLETIONS)
    assert outbox.state.fulcrum_link.is_up, "FulcrumCore has answered, so there is no outage"
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
            assert reopening.retry_now(session, job_id) == "report"
    assert {what for what, _status in outbox.reports(job)} == {"complete"}


def test_a_failure_that_replaces_a_completion_is_sent_again_after_an_outage(outbox: Outbox) -> None:
    job = outbox.ordered()
    job_id = outbox.ended(job, made())
    outbox.world.sim.add_fault("status", status=500, path=r"/complete$")
    outbox.world.sim.add_fault("status", status=503, path=r"/fail$", times=1)
    outbox.turn(MAX_FAILED_COMPLETIONS + 2)
    assert outbox.reports(job)[-4:] == [("complete", 500), ("fail", 503), ("complete", 500), ("fail", 204)]
    assert (outbox.row(job_id).error_code, outbox.row(job_id).report_state) == ("RESULT_REFUSED", "reported")
