"""`smith jobs`: lists, one job, and the operator's verbs."""

from __future__ import annotations

import itertools
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.cli_world import GIVE_UP_S, Cli, claim, submit
from support.stories import store_story, story_of

from executor.database import job_queue, job_runs, mappings, nodes, outbox
from executor.database.nodes import AgentProcess
from executor.database.tables import Job
from executor.model import JobResult, JobStatus, ReportState
from executor.shared.error_codes import ErrorCode

BAD = JobResult(succeeded=False, code=ErrorCode.CAPACITY, detail="no space on local-zfs (run create-1)")
GOOD = JobResult(succeeded=True, vm={"vmid": 100123, "node": "pve1", "status": "running"})


@pytest.fixture
def smith(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def test_the_list_has_the_newest_first_with_stable_fields(smith: Cli) -> None:
    older, newer = smith.submit(action="create"), smith.submit(action="start")
    found = smith.json("jobs", "list")
    assert [job["id"] for job in found] == [newer, older]
    assert set(found[0]) == {
        "service_name",
        "vmid",
        "vm_name",
        "id",
        "fulcrum_id",
        "service_id",
        "action",
        "status",
        "priority",
        "attempt",
        "report_state",
        "error_code",
        "error_message",
        "received_at",
        "started_at",
        "finished_at",
        "reported_at",
        "run_ident",
    }
    assert found[0]["received_at"].endswith("Z")
    assert found[0]["started_at"] is None


def test_the_list_can_be_filtered(smith: Cli) -> None:
    failed = smith.finished(BAD, action="create")
    done = smith.finished(GOOD, action="start")
    waiting = smith.submit(action="stop")

    def ids(*args: str) -> list[int]:
        return [job["id"] for job in smith.json("jobs", "list", *args)]

    assert ids("--status", "failed") == [failed]
    assert ids("--status", "failed", "--status", "pending") == [waiting, failed]
    assert ids("--action", "start") == [done]
    assert ids("--unreported") == [done, failed]
    assert ids("--limit", "1") == [waiting]
    service_id = smith.row(done).service_id
    assert service_id is not None
    assert ids("--service", service_id) == [done]
    assert ids("--service", service_id[:8]) == [done]


def test_the_list_names_services_and_vms_also_of_deleted_ones(smith: Cli) -> None:
    job_id = smith.submit(service={"name": "web shop"}, service_id="s-1")
    with smith.filling() as session:
        mappings.reserve(session, service_id="s-1", cluster="default", vmid=100123, name="web-1")
        job_queue.finish(session, claim(session), GOOD)
    gone = JobResult(succeeded=True, vm={"vmid": 100124, "name": "old-1", "status": "absent"})
    deleted = smith.finished(gone, action="delete", service_id="s-2")
    found = {job["id"]: (job["service_name"], job["vmid"], job["vm_name"]) for job in smith.json("jobs", "list")}
    assert found == {job_id: ("web shop", 100123, "web-1"), deleted: (None, 100124, "old-1")}
    shown = smith.ok("jobs", "list")
    assert "web shop" in shown
    assert "100123 web-1" in shown
    assert smith.json("jobs", "show", str(job_id))["vm_name"] == "web-1"


def test_the_list_can_be_limited_to_failures_and_to_a_time(smith: Cli) -> None:
    old, failed, done = smith.finished(BAD), smith.finished(BAD), smith.finished(GOOD)
    with smith.filling() as session:
        session.get_one(Job, old).received_at = datetime.now(UTC) - timedelta(hours=3)

    def ids(*args: str) -> list[int]:
        return [job["id"] for job in smith.json("jobs", "list", *args)]

    assert ids("--failed") == [failed, old]
    assert ids("--since", "2h") == [done, failed]
    assert ids("--since", "2h", "--failed") == [failed]
    yesterday = datetime.now(UTC) - timedelta(days=1)
    assert ids("--since", f"{yesterday:%Y-%m-%dT%H:%M}") == [done, failed, old]
    for wrong in ("yesterday", "2y", "", "infs", "1e400d"):
        assert smith("jobs", "list", "--since", wrong).returncode == 2, wrong
    assert smith.json("audit", "list", "--since", "1h") == []


def test_runs_can_be_limited_to_failures_and_to_a_time(smith: Cli) -> None:
    job_id = smith.submit(service={"name": "web shop"})
    smith.run_of(job_id, "create-1")
    smith.add_run(job_id, "create-2")
    with smith.filling() as session:
        end = {"status": "failed", "rc": 2, "reason": "x", "folder": "", "upids": []}
        job_runs.note_run_ended(session, "create-2", **end)

    def idents(*args: str) -> list[str]:
        return [run["ident"] for run in smith.json("runs", "list", *args)]

    assert idents("--failed") == ["create-2"]
    assert idents("--since", "1h", "--job", str(job_id)) == ["create-2", "create-1"]
    assert idents("--since", "0s") == []
    assert "web shop" in smith.ok("runs", "list")


def test_an_unknown_or_ambiguous_service_fails_with_a_hint(smith: Cli) -> None:
    smith.submit(service_id="aaaa1111-0000-4000-8000-000000000000")
    smith.submit(service_id="aaaa2222-0000-4000-8000-000000000000")
    unclear = smith("jobs", "list", "--service", "aaaa")
    assert unclear.returncode == 1
    assert "aaaa1111" in unclear.stderr
    assert "aaaa2222" in unclear.stderr
    unknown = smith("jobs", "list", "--service", "ffff")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "ffff" in unknown.stderr


def test_a_status_that_does_not_exist_is_a_usage_error(smith: Cli) -> None:
    assert smith("jobs", "list", "--status", "done").returncode == 2


def test_an_empty_list_prints_a_sentence_or_an_empty_document(smith: Cli) -> None:
    smith.submit()
    assert smith.ok("jobs", "list", "--action", "nothing") == "no jobs match\n"
    assert smith.json("jobs", "list", "--action", "nothing") == []


def test_a_piped_table_has_one_line_per_job_and_no_colours(smith: Cli) -> None:
    smith.finished(JobResult(succeeded=False, code=ErrorCode.TASK_FAILED, detail="x " * 300))
    smith.submit(action="a" * 100)
    lines = smith.ok("jobs", "list", TERM="xterm-256color", COLUMNS="40").splitlines()
    assert len(lines) == 3
    assert lines[0].split()[:4] == ["ID", "FULCRUM", "ACTION", "STATUS"]
    assert "\x1b" not in "".join(lines)
    assert not any(line.endswith(" ") for line in lines)


@pytest.mark.parametrize("form", ["number", "id", "capitals", "beginning"])
def test_a_job_is_found_by_each_kind_of_reference(form: str, smith: Cli) -> None:
    job_id = smith.submit(fulcrum_id="abcd1234-0000-4000-8000-000000000000")
    smith.submit(fulcrum_id="abce1234-0000-4000-8000-000000000000")
    full = smith.row(job_id).fulcrum_id
    reference = {"number": str(job_id), "id": full, "capitals": full.upper(), "beginning": "abcd"}[form]
    assert smith.json("jobs", "show", reference)["fulcrum_id"] == full


def test_an_unknown_or_ambiguous_job_fails_with_a_hint(smith: Cli) -> None:
    smith.submit(fulcrum_id="abcd1234-0000-4000-8000-000000000000")
    smith.submit(fulcrum_id="abce1234-0000-4000-8000-000000000000")
    unknown = smith("jobs", "show", "4711")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert unknown.stderr.startswith("smith: there is no job 4711")
    assert "smith jobs list" in unknown.stderr
    unclear = smith("jobs", "show", "abc")
    assert unclear.returncode == 1
    assert "abcd1234" in unclear.stderr
    assert "abce1234" in unclear.stderr


def test_a_short_number_is_never_the_beginning_of_an_id(smith: Cli) -> None:
    """`smith jobs cancel 4` must not cancel job 1, whose id in FulcrumCore happens to begin with 4."""
    service_id = "55500000-0000-4000-8000-000000000009"
    job_id = smith.submit(fulcrum_id="44440000-0000-4000-8000-000000000001", service_id=service_id)
    with smith.filling() as session:
        mappings.insert_active(session, service_id=service_id, cluster="lab", vmid=100123, node="pve1", name="web-1")
    for command in (("jobs", "cancel", "--yes"), ("jobs", "retry"), ("jobs", "show")):
        done = smith(command[0], command[1], "44440", *command[2:])
        assert (done.returncode, "there is no job 44440" in done.stderr) == (1, True), done.stderr
    assert smith("mappings", "show", "555").returncode == 1
    assert smith.json("jobs", "show", "44440000")["id"] == job_id
    assert smith.json("mappings", "show", "55500000")["vmid"] == 100123


@pytest.mark.parametrize("reference", ["%", "_", "", " ", "' OR 1=1 --", "99999999999999999999999", "²"])
def test_malformed_references_fit_no_job(reference: str, smith: Cli) -> None:
    smith.submit()
    done = smith("jobs", "show", reference)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("smith: ")
    assert done.stderr.count("\n") == 1


def test_a_job_is_shown_with_all_its_columns_and_runs(smith: Cli) -> None:
    job_id = smith.submit(params={"cores": 4}, service={"name": "web", "properties": {"memoryMb": 2048}})
    smith.run_of(job_id, "create-1")
    shown = smith.ok("jobs", "show", str(job_id))
    for text in ("processing", "create-1", '"cores": 4', '"memoryMb": 2048', "deadline at"):
        assert text in shown, text
    found = smith.json("jobs", "show", str(job_id))
    assert found["params"] == {"cores": 4}
    assert found["runs"][0]["ident"] == "create-1"
    assert found["runs"][0]["upids"] == ["UPID:pve1:1"]


def test_vault_references_are_shown_and_secrets_are_not(smith: Cli) -> None:
    properties = {"ciPassword": "hunter2-in-the-clear", "tokens": ["abcdefgh"], "hostname": "web"}
    job_id = smith.submit(
        service={"properties": properties}, params={"ciPassword": "vault://4f1c", "nested": {"api_key": {"a": "bcde"}}}
    )
    for shown in (smith.ok("jobs", "show", str(job_id)), smith.ok("jobs", "show", str(job_id), "--json")):
        assert "vault://4f1c" in shown
        assert "web" in shown
        for secret in ("hunter2-in-the-clear", "abcdefgh", "bcde"):
            assert secret not in shown


def test_the_agents_own_secrets_are_masked_everywhere(smith: Cli) -> None:
    smith.finished(JobResult(succeeded=False, code=ErrorCode.PVE_AUTH, detail="no ticket for a-secret-of-proxmox"))
    env = {"PROXMOX_TOKEN_SECRET": "a-secret-of-proxmox"}
    for shown in (smith.ok("jobs", "list", **env), smith.ok("jobs", "list", "--json", **env)):
        assert "a-secret-of-proxmox" not in shown
        assert "no ticket for ********" in shown


def test_a_job_is_shown_as_a_timeline_of_its_attempts_tasks_and_reports(smith: Cli) -> None:
    job_id = smith.submit()
    with smith.filling() as session:
        job_queue.requeue(session, claim(session), backoff_s=0, reason="VM_LOCKED: a backup runs")
    smith.run_of(job_id, "create-1")
    store_story(smith, "create-1", story_of("Log in", "Create the VM", outcome="failed", steps=("cloning",)))
    with smith.filling() as session:
        job = session.get_one(Job, job_id)
        job_queue.finish(session, job_queue.lease_of(job), BAD)
        outbox.postpone_report(session, job_id, backoff_s=0, note="HTTP 502")
        outbox.postpone_report(session, job_id, backoff_s=0, note="HTTP 502")
        outbox.note_reported(session, job_id, ReportState.REPORTED)
    lines = smith.ok("jobs", "show", str(job_id)).partition("Timeline\n")[2].splitlines()
    told = [line.split(None, 3)[3] for line in lines[1:] if line]
    for first, later in itertools.pairwise(
        [
            "received from FulcrumCore",
            "attempt 1 ended, the job gets another attempt: VM_LOCKED: a backup runs",
            "attempt 2: create.yml starts (create-1)",
            "failed: CAPACITY: no space on local-zfs (run create-1)",
            "reported to FulcrumCore",
        ]
    ):
        assert told.index(first) < told.index(later)
    assert "Create the VM: failed in 1.5 s" in told
    assert "cloning" in told
    assert "UPID:pve1:0001:qmclone 40 %: transferred 4 GiB" in told
    assert any(line.startswith("report not accepted (2 times") and line.endswith("HTTP 502") for line in told)
    document = smith.json("jobs", "show", str(job_id))
    assert [event["kind"] for event in document["events"]] == ["requeued", "report_postponed"]
    assert document["runs"][0]["story"]["tasks"][1]["outcome"] == "failed"


def test_retry_skips_the_wait_for_the_next_attempt(smith: Cli) -> None:
    job_id = smith.submit()
    with smith.filling() as session:
        job_queue.requeue(session, claim(session), backoff_s=3600, reason="VM_LOCKED: later")
    assert smith.row(job_id).available_at is not None
    assert "next attempt" in smith.ok("jobs", "retry", str(job_id))
    assert smith.row(job_id).available_at is None


def test_retry_skips_the_wait_for_the_next_report(smith: Cli) -> None:
    job_id = smith.finished(GOOD)
    with smith.filling() as session:
        outbox.postpone_report(session, job_id, backoff_s=3600, note="HTTP 502")
    assert "report to FulcrumCore" in smith.ok("jobs", "retry", str(job_id))
    assert smith.row(job_id).report_after is None


def test_retry_explains_why_there_is_nothing_to_retry(smith: Cli) -> None:
    abandoned = smith.finished(BAD)
    with smith.filling() as session:
        outbox.note_reported(session, abandoned, ReportState.ABANDONED)
    ended = smith("jobs", "retry", str(abandoned))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "FulcrumCore does not expect its result; repeat the action in FulcrumCore" in ended.stderr
    assert f"/api/v1/services/{smith.row(abandoned).service_id}/create" in ended.stderr
    assert smith.row(abandoned).status == JobStatus.FAILED
    running = smith.submit()
    with smith.filling() as session:
        claim(session)
    hostile = smith.submit(action="start; touch x #")
    with smith.filling() as session:
        job_queue.finish(session, claim(session), BAD)
        outbox.note_reported(session, hostile, ReportState.ABANDONED)
    command = smith("jobs", "retry", str(hostile)).stderr.partition("creates a new job: ")[2].partition(" (with a")[0]
    assert shlex.split(command)[-1].endswith("/start%3B%20touch%20x%20%23")
    busy = smith("jobs", "retry", str(running))
    assert busy.returncode == 1
    assert "is running" in busy.stderr


@pytest.mark.parametrize("state", [ReportState.REPORTED, ReportState.OVERTAKEN])
def test_retry_sends_the_result_of_an_ended_job_again(smith: Cli, state: ReportState) -> None:
    """FulcrumCore may have lost the result, for example if its database was restored from a backup."""
    reported = smith.finished(BAD)
    with smith.filling() as session:
        outbox.note_reported(session, reported, state)
    service_id = smith.row(reported).service_id
    shown = smith.ok("jobs", "retry", str(reported), FULCRUM_API_URL="https://core.example.net")
    assert "its report to FulcrumCore is due now" in shown
    assert f"https://core.example.net/api/v1/services/{service_id}/create" in shown, "how the action is repeated"
    assert '-H @<(echo "Authorization: Bearer $TOKEN")' in shown, "the token is in no argument list"
    row = smith.row(reported)
    assert (row.status, row.report_state) == (JobStatus.FAILED, ReportState.DUE)


def test_cancel_needs_yes_without_a_terminal(smith: Cli) -> None:
    job_id = smith.submit()
    done = smith("jobs", "cancel", str(job_id), stdin="y\n")
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert smith.row(job_id).status == JobStatus.PENDING


def test_cancel_ends_a_pending_job_at_once_and_requests_the_end_of_a_running_one(smith: Cli) -> None:
    running = smith.submit()
    with smith.filling() as session:
        claim(session)
    waiting = smith.submit()
    assert "is cancelled" in smith.ok("jobs", "cancel", str(waiting), "--yes")
    assert smith.row(waiting).error_code == ErrorCode.CANCELLED
    assert smith.row(waiting).report_state == ReportState.DUE
    assert "has a cancel request" in smith.ok("jobs", "cancel", str(running), "--yes")
    assert smith.row(running).cancel_requested
    assert smith.row(running).status == JobStatus.PROCESSING


def test_cancel_says_whether_an_agent_runs_that_will_end_the_job(smith: Cli) -> None:
    running = smith.submit()
    with smith.filling() as session:
        claim(session)
    assert "no agent is running" in smith.ok("jobs", "cancel", str(running), "--yes")
    with smith.filling() as session:
        agent = AgentProcess(boot_id="a", host="pve-host", pid=1, version="1", concurrency=1)
        nodes.add_agent(session, agent)
    assert "stops the playbook within seconds" in smith.ok("jobs", "cancel", str(running), "--yes")


def test_a_job_that_has_ended_cannot_be_cancelled(smith: Cli) -> None:
    job_id = smith.finished(GOOD)
    done = smith("jobs", "cancel", str(job_id), "--yes")
    assert done.returncode == 1
    assert "has ended already: it is completed" in done.stderr
    assert smith.row(job_id).status == JobStatus.COMPLETED


@pytest.mark.parametrize(
    ("answer", "code", "status"), [("y\n", 0, JobStatus.FAILED), ("n\n", 1, JobStatus.PENDING), ("", 1, None)]
)
def test_cancel_asks_on_a_terminal(answer: str, code: int, status: JobStatus | None, smith: Cli) -> None:
    """An end of input (Ctrl-D) is no yes."""
    job_id = smith.submit()
    with _asked(smith, "jobs", "cancel", str(job_id)) as (process, terminal):
        os.write(terminal, answer.encode() or b"\x04")
        ended = process.wait(GIVE_UP_S)
    assert ended == (130 if status is None else code)
    assert smith.row(job_id).status == (status or JobStatus.PENDING)


def test_an_interrupt_at_the_question_exits_with_130(smith: Cli) -> None:
    job_id = smith.submit()
    with _asked(smith, "jobs", "cancel", str(job_id)) as (process, _terminal):
        assert _interrupt(process) == 130
    assert smith.row(job_id).status == JobStatus.PENDING


def test_a_job_claimed_during_the_question_gets_a_cancel_request(smith: Cli) -> None:
    """No transaction is open while the person thinks: an agent claims the job before the answer."""
    job_id = smith.submit()
    with _asked(smith, "jobs", "cancel", str(job_id)) as (process, terminal):
        with smith.filling() as session:
            claim(session)
            submit(session)
        os.write(terminal, b"y\n")
        assert process.wait(GIVE_UP_S) == 0
    assert smith.row(job_id).cancel_requested


def _interrupt(process: subprocess.Popen[bytes]) -> int:
    """Press Ctrl-C, again if nothing happens; return the exit code.

    Between its last check for signals and its wait for input, Python notices a signal only with the next one.
    """
    for _ in range(GIVE_UP_S // 5):
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            return process.wait(5)
    raise AssertionError("the command does not end")


@contextmanager
def _asked(smith: Cli, *args: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start a command on a terminal, and wait until it has asked."""
    master, slave = os.openpty()
    process = subprocess.Popen(
        smith.command(*args),
        env=smith.environment(),
        cwd=smith.folder,
        stdin=slave,
        stdout=slave,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(slave)
    try:
        shown = b""
        while b"[y/N]" not in shown:
            shown += os.read(master, 4096)
        yield process, master
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(GIVE_UP_S)
        os.close(master)
