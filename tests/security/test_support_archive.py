"""`smith support`: the archive has what a bug report needs and no secret, and needs no usable database."""

from __future__ import annotations

import json
import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest
from canaries import Canary, Scanner, _encoded_forms, make_core
from sqlalchemy import update
from support.cli_world import Cli, claim

from executor.database import job_queue, job_runs, outbox
from executor.database.tables.jobs import Run
from executor.model import JobResult
from executor.shared.error_codes import ErrorCode

FILES = {
    "versions.json",
    "settings.json",
    "machine.json",
    "database.json",
    "status.json",
    "critical.json",
    "failed-jobs.json",
    "output-create-1.txt",
}


@pytest.fixture
def smith(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def write_failed_job(smith: Cli, text: str, **job_fields: Any) -> int:
    """Write a failed job whose error, output, story and report contain a text."""
    job_id = smith.submit(**job_fields)
    with smith.database_session() as session:
        lease = claim(session)
        job_runs.store_run_start(session, lease, run_ident="create-1", playbook="create.yml")
    folder = smith.data / "artifacts" / "create-1"
    folder.mkdir(parents=True)
    (folder / "stdout").write_text(f"TASK [Clone]\n{text}\n", encoding="utf-8")
    task = {"task": text, "at": 0.1, "seconds": 1.0, "outcome": "failed", "message": text}
    story = {"tasks": [task], "steps": [{"at": 0.2, "text": text}], "proxmox_tasks": []}
    with smith.database_session() as session:
        end = {"status": "failed", "rc": 2, "reason": text, "folder": str(folder), "upids": []}
        job_runs.store_run_end(session, "create-1", **end)
        session.execute(update(Run).values(story=story))
        job_queue.finish(session, lease, JobResult(succeeded=False, code=ErrorCode.TASK_FAILED, detail=text))
        outbox.postpone_report(session, job_id, backoff_s=1, note=text)
    return job_id


def write_archive(smith: Cli, *args: str, **env: str) -> dict[str, str]:
    """Write an archive; return its files."""
    smith.ok("support", "--yes", "--no-doctor", "--output", "report.tar.gz", *args, **env)
    file = smith.folder / "report.tar.gz"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with tarfile.open(file) as archive:
        members = archive.getmembers()
        assert {member.name.partition("/")[0] for member in members} == {"report"}
        read = {member.name.partition("/")[2]: archive.extractfile(member) for member in members}
        return {name: stream.read().decode() for name, stream in read.items() if stream is not None}


def test_the_archive_has_what_a_bug_report_needs(smith: Cli) -> None:
    write_failed_job(smith, "no space on local-zfs", params={"hostname": "of-a-customer"}, service={"name": "shop"})
    (smith.folder / "agent.log").write_text("one line of the log\n")
    files = write_archive(smith, "--log", "agent.log")
    assert set(files) == FILES | {"log-1-agent.log"}
    (job,) = json.loads(files["failed-jobs.json"])
    assert job["error_message"] == "TASK_FAILED: no space on local-zfs"
    assert job["runs"][0]["story"]["tasks"][0]["message"] == "no space on local-zfs"
    assert any("FulcrumCore did not accept the report" in entry["text"] for entry in job["timeline"])
    assert json.loads(files["database.json"])["rows"]["jobs"] == 1
    assert json.loads(files["database.json"])["problems"] == []
    assert "TASK [Clone]" in files["output-create-1.txt"]
    assert "one line of the log" in files["log-1-agent.log"]
    assert "of-a-customer" not in "".join(files.values())


def test_no_secret_is_in_the_archive_in_any_form(smith: Cli, tmp_path: Path) -> None:
    canaries = []
    for kind, ending in (("FULCRUM_API_TOKEN", ""), ("PROXMOX_TOKEN_SECRET", ""), ("SMITH_HTTP_TOKEN", "-é/'\"&+ ")):
        secret_core = make_core()
        canaries.append(
            Canary(
                kind, secret_core if kind != "SMITH_HTTP_TOKEN" else f"{secret_core}{ending}".strip(), (secret_core,)
            )
        )
    env = {canary.kind: canary.cores[0] for canary in canaries}
    text = " ".join(form for canary in canaries for form in _encoded_forms(canary.cores[0]))
    write_failed_job(smith, text)
    (smith.folder / "agent.log").write_text(f"{text}\n")
    files = write_archive(smith, "--log", "agent.log", **env)
    assert "********" in files["failed-jobs.json"]
    folder = tmp_path / "extracted"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content)
    assert Scanner(canaries).find_in_files_below(folder) == set()


def test_the_files_are_listed_before_anything_is_written(smith: Cli) -> None:
    write_failed_job(smith, "no space")
    done = smith("support", "--no-doctor", "--output", "report.tar.gz", stdin="y\n")
    assert done.returncode == 2, "without a terminal, --yes is needed"
    assert all(name in done.stdout for name in FILES)
    assert not (smith.folder / "report.tar.gz").exists()
    write_archive(smith)
    again = smith("support", "--yes", "--no-doctor", "--output", "report.tar.gz")
    assert (again.returncode, "exists" in again.stderr) == (1, True)


def test_what_cannot_be_read_is_named_and_the_rest_is_collected(smith: Cli) -> None:
    smith.submit()
    with smith.engine() as engine, engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE job_events")
        connection.exec_driver_sql("DROP TABLE critical_jobs")
    files = write_archive(smith, "--log", "missing.log")
    assert "critical_jobs" in json.loads(files["critical.json"])["not_collected"]
    assert "No such file" in files["log-1-missing.log"]
    assert json.loads(files["versions.json"])["agent_smith"]


def test_the_result_of_doctor_is_in_the_archive(smith: Cli) -> None:
    smith.submit()
    result = smith.json("support", "--yes", "--output", "report.tar.gz")
    assert "doctor.json" in result["files"]
    with tarfile.open(smith.folder / "report.tar.gz") as archive:
        stream = archive.extractfile("report/doctor.json")
        assert stream is not None
        assert {check["area"] for check in json.load(stream)} >= {"settings", "database", "machine"}


def test_an_archive_is_made_without_a_database(smith: Cli) -> None:
    files = write_archive(smith)
    assert "no database yet" in json.loads(files["database.json"])["not_collected"]
    assert json.loads(files["versions.json"])["platform"]
