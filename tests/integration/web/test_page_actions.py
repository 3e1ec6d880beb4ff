"""Operator actions on the pages: each needs a session, the form's token and a confirmation, and is in the audit log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select
from support.web_jobs import Filled, fill
from support.web_world import TOKEN, PagesSite, running_pages

from executor.database import agent_queries, nodes
from executor.database.engine import read_only_session, transaction
from executor.database.nodes import AgentProcess
from executor.database.tables.audit import AuditEntry
from executor.database.tables.jobs import Job
from executor.database.tables.mappings import Mapping
from executor.drift.facts import DriftKind, Finding, Repair
from executor.web.pages.actions import MAX_REASON_LENGTH

ACTIONS = ("retry", "cancel", "pause", "resume", "repair", "drain", "resume-node", "doctor")


@pytest.fixture(scope="module")
def pages(
    tmp_path_factory: pytest.TempPathFactory, empty_database: Path, database_settings: dict[str, str]
) -> Iterator[PagesSite]:
    """The pages of an agent, once with SQLite and once with PostgreSQL."""
    with running_pages(tmp_path_factory.mktemp("pages"), empty_database, **database_settings) as site:
        yield site


@pytest.fixture(scope="module")
def jobs(pages: PagesSite) -> Filled:
    return fill(pages.engine, Path(pages.settings.smith_data_dir))


def list_users_in_the_audit_log(site: PagesSite, verb: str) -> list[str]:
    """Return who has made the changes of this kind, according to the audit log."""
    with read_only_session(site.engine) as session:
        return list(session.scalars(select(AuditEntry.who).where(AuditEntry.verb == verb)))


@pytest.mark.parametrize("action", ACTIONS)
def test_no_action_is_executed_without_a_session(pages: PagesSite, jobs: Filled, action: str) -> None:
    form = {"job": str(jobs.pending), "reason": "x", "confirmed": "yes"}
    answer = pages.browser().post(f"/actions/{action}", form)
    assert (answer.status, answer.headers["location"]) == (303, f"../login?next=actions/{action}")
    answer_to_bearer_token = pages.browser(Authorization=f"Bearer {TOKEN}").post(
        f"/actions/{action}", form, Accept="*/*"
    )
    assert answer_to_bearer_token.status in (303, 401)
    assert list_users_in_the_audit_log(pages, action) == []


@pytest.mark.parametrize("action", ACTIONS)
def test_no_action_is_executed_without_the_token_of_the_form(pages: PagesSite, jobs: Filled, action: str) -> None:
    form = {"job": str(jobs.pending), "reason": "x", "confirmed": "yes"}
    browser = pages.logged_in()
    for token in ("", "wrong", pages.logged_in().cookie):
        assert browser.post(f"/actions/{action}", form | {"form_token": token}).status == 403
    assert browser.post(f"/actions/{action}", form, Origin="https://evil.example").status == 403
    assert list_users_in_the_audit_log(pages, action) == []


@pytest.mark.parametrize("action", [name for name in ACTIONS if name != "doctor"])
def test_no_action_is_executed_without_a_confirmation(pages: PagesSite, jobs: Filled, action: str) -> None:
    assert pages.logged_in().act(f"/actions/{action}", job=str(jobs.pending), reason="x").status == 400
    assert list_users_in_the_audit_log(pages, action) == []


def test_a_retry_and_a_cancel_change_the_job_in_the_name_of_the_session(pages: PagesSite, jobs: Filled) -> None:
    browser = pages.logged_in("Ada")
    job = str(jobs.pending)
    answer = browser.act("/actions/retry", job=job, confirmed="yes")
    assert (answer.status, answer.headers["location"]) == (303, f"../jobs/{job}")
    assert browser.act("/actions/cancel", job=job, confirmed="yes", reason="not needed").status == 303
    with read_only_session(pages.engine) as session:
        assert session.scalars(select(Job.error_code).where(Job.id == jobs.pending)).one() == "CANCELLED"
    assert list_users_in_the_audit_log(pages, "retry") == list_users_in_the_audit_log(pages, "cancel") == ["Ada (web)"]
    again = browser.act("/actions/cancel", job=job, confirmed="yes")
    assert again.status == 409
    assert "has ended already" in again.text
    for unusable in ("", "-1", "0x1", "9" * 30, "999999"):
        assert browser.act("/actions/cancel", job=unusable, confirmed="yes").status == 409


def test_a_pause_has_a_reason_and_is_ended_by_a_resume(pages: PagesSite) -> None:
    browser = pages.logged_in("Ada")
    assert browser.act("/actions/pause", confirmed="yes", reason=" ").status == 409
    assert browser.act("/actions/pause", confirmed="yes", reason="update\0of pve2" + "x" * 600).status == 303
    assert "update of pve2" in browser.get("/").text
    with read_only_session(pages.engine) as session:
        assert agent_queries.find_pause(session) is not None
        reasons = session.scalars(select(AuditEntry.reason).where(AuditEntry.verb == "pause")).all()
        assert [(reason or "")[:14] for reason in reasons] == ["update of pve2"]
        assert all(len(reason or "") == MAX_REASON_LENGTH for reason in reasons)
    assert browser.act("/actions/pause", confirmed="yes", reason="again").status == 409
    assert browser.act("/actions/resume", confirmed="yes").status == 303
    assert browser.act("/actions/resume", confirmed="yes").status == 409
    assert list_users_in_the_audit_log(pages, "pause") == list_users_in_the_audit_log(pages, "resume") == ["Ada (web)"]


def test_one_agent_process_is_drained_and_resumed(pages: PagesSite) -> None:
    browser = pages.logged_in("Ada")
    process_form = {"node": "boot-1", "confirmed": "yes"}
    assert browser.act("/actions/drain", **process_form, reason=" ").status == 409
    assert browser.act("/actions/drain", **process_form, reason="new kernel").headers["location"] == "../executors"
    with read_only_session(pages.engine) as session:
        assert nodes.operator_limits(session, "boot-1").is_paused
        assert agent_queries.find_pause(session) is None, "only this agent process"
    assert "new kernel" in browser.get("/executors").text
    assert browser.act("/actions/drain", **process_form, reason="again").status == 409
    assert browser.act("/actions/resume-node", **process_form).status == 303
    assert browser.act("/actions/resume-node", **process_form).status == 409
    for unknown in ("", "boot-9", "x" * 1000):
        assert browser.act("/actions/drain", node=unknown, reason="x", confirmed="yes").status == 409
    with read_only_session(pages.engine) as session:
        rows = session.execute(select(AuditEntry.who, AuditEntry.verb, AuditEntry.reason))
        assert ("Ada (web)", "drain", "new kernel") in {tuple(row) for row in rows}
        assert not nodes.operator_limits(session, "boot-1").is_paused


def test_a_stopped_agent_process_cannot_be_drained(pages: PagesSite) -> None:
    stopped = AgentProcess(boot_id="boot-0", host="gone", pid=2, version="0", concurrency=1)
    with transaction(pages.engine) as session:
        nodes.store_agent_start(session, stopped)
        nodes.store_agent_stop(session, "boot-0", "signal")
    browser = pages.logged_in()
    assert browser.act("/actions/drain", node="boot-0", reason="x", confirmed="yes").status == 409
    assert "Drain gone" not in browser.get("/executors").text


def test_an_unmapped_vm_that_a_drift_check_found_is_adopted(pages: PagesSite) -> None:
    service_id = "77777777-0000-4000-8000-000000000001"
    finding = Finding(
        kind=DriftKind.UNMAPPED_VM,
        service_id=service_id,
        vmid=100555,
        text="no mapping",
        node="pve1",
        name="web-7",
        repair=Repair.ADOPT,
    )
    object.__setattr__(pages.view, "list_drift_findings", lambda: [finding])
    browser = pages.logged_in("Ada")
    form = {"kind": "unmapped_vm", "service": service_id, "vmid": "100555", "confirmed": "yes"}
    assert browser.act("/actions/repair", **form | {"vmid": "1"}).status == 409
    assert browser.act("/actions/repair", **form).status == 303
    with read_only_session(pages.engine) as session:
        assert session.scalars(select(Mapping.vmid).where(Mapping.service_id == service_id)).one() == 100555
    assert list_users_in_the_audit_log(pages, "adopt") == ["Ada (web)"]


def test_the_checks_of_doctor_run_on_request(pages: PagesSite) -> None:
    browser = pages.logged_in()
    assert "have not run since" in browser.get("/doctor").text
    assert browser.act("/actions/doctor").status == 303
    assert "Checked" in browser.get("/doctor").text


def test_an_unknown_action_is_answered_with_404(pages: PagesSite) -> None:
    assert pages.logged_in().act("/actions/destroy", confirmed="yes").status == 404
