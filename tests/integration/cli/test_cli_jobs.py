"""`smith jobs list`, `smith jobs show` and `smith runs list`."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.cli_results import BAD, GOOD
from support.cli_world import Cli, claim
from support.stories import store_story, story_of

from executor.database import job_queue, job_runs, mappings, outbox
from executor.database.tables.jobs import Job
from executor.model import JobResult, ReportState
from executor.shared.error_codes import ErrorCode


@pytest.fixture
def smith(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def test_the_list_begins_with_the_newest_job_and_has_exactly_these_fields(smith: Cli) -> None:
    older, newer = smith.submit(action="create"), smith.submit(action="start")
    jobs = smith.json("jobs", "list")
    assert [job["id"] for job in jobs] == [newer, older]
    assert set(jobs[0]) == {
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
    assert jobs[0]["received_at"].endswith("Z")
    assert jobs[0]["started_at"] is None


def test_the_list_can_be_filtered(smith: Cli) -> None:
    failed = smith.finished(BAD, action="create")
    completed = smith.finished(GOOD, action="start")
    pending = smith.submit(action="stop")

    def list_ids(*args: str) -> list[int]:
        return [job["id"] for job in smith.json("jobs", "list", *args)]

    assert list_ids("--status", "failed") == [failed]
    assert list_ids("--status", "failed", "--status", "pending") == [pending, failed]
    assert list_ids("--action", "start") == [completed]
    assert list_ids("--unreported") == [completed, failed]
    assert list_ids("--limit", "1") == [pending]
    service_id = smith.row(completed).service_id
    assert service_id is not None
    assert list_ids("--service", service_id) == [completed]
    assert list_ids("--service", service_id[:8]) == [completed]


def test_the_list_shows_the_names_of_services_and_vms_even_if_they_were_deleted(smith: Cli) -> None:
    job_id = smith.submit(service={"name": "web shop"}, service_id="s-1")
    with smith.database_session() as session:
        mappings.reserve(session, service_id="s-1", cluster="default", vmid=100123, name="web-1")
        job_queue.finish(session, claim(session), GOOD)
    deleted_vm = JobResult(succeeded=True, vm={"vmid": 100124, "name": "old-1", "status": "absent"})
    delete_job_id = smith.finished(deleted_vm, action="delete", service_id="s-2")
    names_by_job = {job["id"]: (job["service_name"], job["vmid"], job["vm_name"]) for job in smith.json("jobs", "list")}
    assert names_by_job == {job_id: ("web shop", 100123, "web-1"), delete_job_id: (None, 100124, "old-1")}
    output = smith.ok("jobs", "list")
    assert "web shop" in output
    assert "100123 web-1" in output
    assert smith.json("jobs", "show", str(job_id))["vm_name"] == "web-1"


def test_the_list_can_be_limited_to_failures_and_to_a_time(smith: Cli) -> None:
    old, failed, completed = smith.finished(BAD), smith.finished(BAD), smith.finished(GOOD)
    with smith.database_session() as session:
        session.get_one(Job, old).received_at = datetime.now(UTC) - timedelta(hours=3)

    def list_ids(*args: str) -> list[int]:
        return [job["id"] for job in smith.json("jobs", "list", *args)]

    assert list_ids("--failed") == [failed, old]
    assert list_ids("--since", "2h") == [completed, failed]
    assert list_ids("--since", "2h", "--failed") == [failed]
    yesterday = datetime.now(UTC) - timedelta(days=1)
    assert list_ids("--since", f"{yesterday:%Y-%m-%dT%H:%M}") == [completed, failed, old]
    for wrong in ("yesterday", "2y", "", "infs", "1e400d"):
        assert smith("jobs", "list", "--since", wrong).returncode == 2, wrong
    assert smith.json("audit", "list", "--since", "1h") == []


def test_runs_can_be_limited_to_failures_and_to_a_time(smith: Cli) -> None:
    job_id = smith.submit(service={"name": "web shop"})
    smith.run_of(job_id, "create-1")
    smith.add_run(job_id, "create-2")
    with smith.database_session() as session:
        end = {"status": "failed", "rc": 2, "reason": "x", "folder": "", "upids": []}
        job_runs.store_run_end(session, "create-2", **end)

    def list_idents(*args: str) -> list[str]:
        return [run["ident"] for run in smith.json("runs", "list", *args)]

    assert list_idents("--failed") == ["create-2"]
    assert list_idents("--since", "1h", "--job", str(job_id)) == ["create-2", "create-1"]
    assert list_idents("--since", "0s") == []
    assert "web shop" in smith.ok("runs", "list")


def test_an_unknown_or_ambiguous_service_fails_with_a_hint(smith: Cli) -> None:
    smith.submit(service_id="aaaa1111-0000-4000-8000-000000000000")
    smith.submit(service_id="aaaa2222-0000-4000-8000-000000000000")
    ambiguous = smith("jobs", "list", "--service", "aaaa")
    assert ambiguous.returncode == 1
    assert "aaaa1111" in ambiguous.stderr
    assert "aaaa2222" in ambiguous.stderr
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
    ambiguous = smith("jobs", "show", "abc")
    assert ambiguous.returncode == 1
    assert "abcd1234" in ambiguous.stderr
    assert "abce1234" in ambiguous.stderr


def test_a_short_number_is_never_the_beginning_of_an_id(smith: Cli) -> None:
    """`smith jobs cancel 4` must not cancel job 1, whose id in FulcrumCore happens to begin with 4."""
    service_id = "55500000-0000-4000-8000-000000000009"
    job_id = smith.submit(fulcrum_id="44440000-0000-4000-8000-000000000001", service_id=service_id)
    with smith.database_session() as session:
        mappings.insert_active_mapping(
            session, service_id=service_id, cluster="lab", vmid=100123, node="pve1", name="web-1"
        )
    for command in (("jobs", "cancel", "--yes"), ("jobs", "retry"), ("jobs", "show")):
        done = smith(command[0], command[1], "44440", *command[2:])
        assert (done.returncode, "there is no job 44440" in done.stderr) == (1, True), done.stderr
    assert smith("mappings", "show", "555").returncode == 1
    assert smith.json("jobs", "show", "44440000")["id"] == job_id
    assert smith.json("mappings", "show", "55500000")["vmid"] == 100123


@pytest.mark.parametrize("reference", ["%", "_", "", " ", "' OR 1=1 --", "99999999999999999999999", "²"])
def test_a_malformed_reference_matches_no_job(reference: str, smith: Cli) -> None:
    smith.submit()
    done = smith("jobs", "show", reference)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("smith: ")
    assert done.stderr.count("\n") == 1


def test_a_job_is_shown_with_all_its_columns_and_runs(smith: Cli) -> None:
    job_id = smith.submit(params={"cores": 4}, service={"name": "web", "properties": {"memoryMb": 2048}})
    smith.run_of(job_id, "create-1")
    output = smith.ok("jobs", "show", str(job_id))
    for text in ("processing", "create-1", '"cores": 4', '"memoryMb": 2048', "deadline at"):
        assert text in output, text
    document = smith.json("jobs", "show", str(job_id))
    assert document["params"] == {"cores": 4}
    assert document["runs"][0]["ident"] == "create-1"
    assert document["runs"][0]["upids"] == ["UPID:pve1:1"]


def test_vault_references_are_shown_and_secrets_are_not(smith: Cli) -> None:
    properties = {"ciPassword": "hunter2-in-the-clear", "tokens": ["abcdefgh"], "hostname": "web"}
    job_id = smith.submit(
        service={"properties": properties}, params={"ciPassword": "vault://4f1c", "nested": {"api_key": {"a": "bcde"}}}
    )
    for output in (smith.ok("jobs", "show", str(job_id)), smith.ok("jobs", "show", str(job_id), "--json")):
        assert "vault://4f1c" in output
        assert "web" in output
        for secret in ("hunter2-in-the-clear", "abcdefgh", "bcde"):
            assert secret not in output


def test_the_secrets_in_the_settings_of_the_agent_are_masked_everywhere(smith: Cli) -> None:
    smith.finished(JobResult(succeeded=False, code=ErrorCode.PVE_AUTH, detail="no ticket for a-secret-of-proxmox"))
    env = {"PROXMOX_TOKEN_SECRET": "a-secret-of-proxmox"}
    for output in (smith.ok("jobs", "list", **env), smith.ok("jobs", "list", "--json", **env)):
        assert "a-secret-of-proxmox" not in output
        assert "no ticket for ********" in output


def test_a_job_is_shown_as_a_timeline_of_its_attempts_tasks_and_reports(smith: Cli) -> None:
    job_id = smith.submit()
    with smith.database_session() as session:
        job_queue.requeue(session, claim(session), backoff_s=0, reason="VM_LOCKED: a backup runs")
    smith.run_of(job_id, "create-1")
    store_story(smith, "create-1", story_of("Log in", "Create the VM", outcome="failed", steps=("cloning",)))
    with smith.database_session() as session:
        job = session.get_one(Job, job_id)
        job_queue.finish(session, job_queue.lease_of(job), BAD)
        outbox.postpone_report(session, job_id, backoff_s=0, note="HTTP 502")
        outbox.postpone_report(session, job_id, backoff_s=0, note="HTTP 502")
        outbox.set_report_state(session, job_id, ReportState.REPORTED)
    timeline = smith.ok("jobs", "show", str(job_id)).partition("Timeline\n")[2].splitlines()
    lines_without_time = [line.split(None, 3)[3] for line in timeline[1:] if line]
    for first, later in itertools.pairwise(
        [
            "received from FulcrumCore",
            "attempt 1 ended, the job gets another attempt: VM_LOCKED: a backup runs",
            "attempt 2: create.yml starts (create-1)",
            "failed: CAPACITY: no space on local-zfs (run create-1)",
            "reported to FulcrumCore",
        ]
    ):
        assert lines_without_time.index(first) < lines_without_time.index(later)
    assert "Create the VM: failed in 1.5 s" in lines_without_time
    assert "cloning" in lines_without_time
    assert "UPID:pve1:0001:qmclone 40 %: transferred 4 GiB" in lines_without_time
    assert any(
        line.startswith("FulcrumCore did not accept the report (2 times") and line.endswith("HTTP 502")
        for line in lines_without_time
    )
    document = smith.json("jobs", "show", str(job_id))
    assert [event["kind"] for event in document["events"]] == ["requeued", "report_postponed"]
    assert document["runs"][0]["story"]["tasks"][1]["outcome"] == "failed"
