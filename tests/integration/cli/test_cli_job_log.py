"""`smith jobs log`: the output of a job's runs, its Ansible tasks, and following a job until it ends."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest
from support.cli_world import GIVE_UP_S, Cli, claim
from support.stories import store_story, story_of

from executor.database import job_queue, job_runs
from executor.model import JobResult
from executor.shared.error_codes import ErrorCode

BAD = JobResult(succeeded=False, code=ErrorCode.CAPACITY, detail="no space on local-zfs (run create-1)")
GOOD = JobResult(succeeded=True, vm={"vmid": 100123, "node": "pve1", "status": "running"})


@pytest.fixture
def smith(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def test_the_log_is_the_newest_runs_output(smith: Cli) -> None:
    job_id = smith.submit()
    smith.run_of(job_id, "create-1", stdout="TASK [Clone]\n\n\x1b[0;32mok: [localhost]\x1b[0m\n")
    assert smith.ok("jobs", "log", str(job_id)) == "TASK [Clone]\n\nok: [localhost]\n"
    assert smith.json("jobs", "log", str(job_id), "--run", "create-1")["run"] == "create-1"


def test_a_missing_log_is_explained(smith: Cli) -> None:
    job_id = smith.submit()
    never = smith("jobs", "log", str(job_id))
    assert never.returncode == 1
    assert "has not run yet" in never.stderr
    smith.run_of(job_id, "create-1", stdout="x")
    wrong = smith("jobs", "log", str(job_id), "--run", "create-9")
    assert wrong.returncode == 1
    assert "create-1" in wrong.stderr
    smith.add_run(job_id, "create-2")
    early = smith("jobs", "log", str(job_id))
    assert early.returncode == 1
    assert "has not written any yet" in early.stderr


def test_the_log_of_a_playbook_that_still_runs_is_shown(smith: Cli) -> None:
    job_id = smith.submit()
    smith.add_run(job_id, "create-2")
    output_folder = smith.folder / "run" / "create-2" / "kept"  # in the run's private folder, until the run has ended
    output_folder.mkdir(parents=True)
    (output_folder / "stdout").write_text("half way\n")
    assert smith.ok("jobs", "log", str(job_id)) == "half way\n"


def test_the_events_have_one_line_per_ansible_task(smith: Cli) -> None:
    job_id = smith.submit()
    events = [
        {"event": "playbook_on_task_start", "event_data": {"task": "Clone"}},
        _event("runner_on_ok", "Clone", duration=3.21, res={"changed": True}),
        _event("runner_on_ok", "Look", duration=0.5, res={"changed": False, "msg": "[bold]as told[/bold]"}),
        _event("runner_on_skipped", "Resize"),
        _event("runner_on_failed", "Tag", ignore_errors=True, res={"msg": "no such tag"}),
        _event("runner_on_failed", "Start", res={"msg": "CAPACITY: no memory"}),
        {"event": 7, "event_data": "odd"},
    ]
    folder = smith.run_of(job_id, "create-1", events=events)
    with (folder / "events.jsonl").open("a") as file:
        file.write('["not an event"]\n{"event": "runner_on_')
    rows = smith.json("jobs", "log", str(job_id), "--events")
    outcomes = [(row["task"], row["outcome"]) for row in rows]
    assert outcomes == [
        ("Clone", "changed"),
        ("Look", "ok"),
        ("Resize", "skipped"),
        ("Tag", "ignored"),
        ("Start", "failed"),
    ]
    assert rows[0]["duration_s"] == 3.21
    text = smith.ok("jobs", "log", str(job_id), "--events")
    assert "CAPACITY: no memory" in text
    assert "[bold]as told[/bold]" in text


def test_show_and_log_print_the_current_step_of_a_running_job(smith: Cli) -> None:
    job_id = smith.submit()
    with smith.database_session() as session:
        claim(session)
    smith.add_run(job_id, "create-2")
    store_story(smith, "create-2", story_of("Create the VM", outcome="running", steps=("waiting for Proxmox, 40 %",)))
    for command in ("show", "log"):
        text = smith.ok("jobs", command, str(job_id))
        assert "now: Create the VM, for " in text or command == "log"
        assert "waiting for Proxmox, 40 %" in text
    assert smith.json("jobs", "log", str(job_id), "--events")[0]["outcome"] == "running"


def test_the_log_of_a_run_on_another_machine_shows_its_story_from_the_database(smith: Cli) -> None:
    job_id = smith.submit()
    smith.add_run(job_id, "create-2")
    store_story(smith, "create-2", story_of("Create the VM", steps=("cloning",)))
    text = smith.ok("jobs", "log", str(job_id))
    assert "is not on this machine; the database has this timeline:" in text
    assert "Create the VM: ok in 1.5 s" in text


def test_the_log_of_a_job_that_ended_without_a_run_shows_its_error(smith: Cli) -> None:
    job_id = smith.finished(BAD)
    done = smith("jobs", "log", str(job_id))
    assert done.returncode == 1
    assert "has ended without a run: CAPACITY: no space on local-zfs" in done.stderr


def test_the_events_include_the_ansible_task_that_is_running(smith: Cli) -> None:
    job_id = smith.submit()
    start = {"event": "playbook_on_task_start", "event_data": {"task": "Wait"}, "created": "2026-11-27T10:00:00.1"}
    folder = smith.run_of(job_id, "create-1", events=[_event("runner_on_ok", "Clone"), start])
    rows = smith.json("jobs", "log", str(job_id), "--events")
    assert [(row["task"], row["outcome"]) for row in rows] == [("Clone", "ok"), ("Wait", "running")]
    (folder / "rc").write_text("137")
    assert smith.json("jobs", "log", str(job_id), "--events")[1]["outcome"] == "interrupted"


@pytest.mark.parametrize(("result", "code"), [(GOOD, 0), (BAD, 1)])
def test_following_a_job_prints_its_output_as_it_grows_and_ends_with_the_job(
    result: JobResult, code: int, smith: Cli
) -> None:
    job_id = smith.submit()
    with smith.database_session() as session:
        lease = claim(session)
    smith.add_run(job_id, "create-1")
    output_folder = smith.folder / "run" / "create-1" / "kept"
    output_folder.mkdir(parents=True)
    output = (output_folder / "stdout").open("a", buffering=1)
    with output, _follow_job(smith, job_id) as process:
        assert process.stdout is not None
        output.write("TASK [Clone]\n")
        _read_until(process, "TASK [Clone]")
        output.write("half a li")
        output.flush()
        with smith.database_session() as session:
            job_runs.store_run_end(
                session, "create-1", status="successful", rc=0, reason="", folder=str(output_folder), upids=[]
            )
            job_queue.finish(session, lease, result)
        rest = process.stdout.read()
        assert process.wait(GIVE_UP_S) == code
    assert "half a li\n" in rest
    assert rest.splitlines()[-1].endswith("completed" if code == 0 else "no space on local-zfs (run create-1)")


def test_following_a_job_on_another_machine_prints_its_story(smith: Cli) -> None:
    job_id = smith.submit()
    with smith.database_session() as session:
        lease = claim(session)
    smith.add_run(job_id, "create-1")
    with _follow_job(smith, job_id) as process:
        store_story(smith, "create-1", story_of("Log in", "Create the VM", outcome="running"))
        _read_until(process, "Create the VM: running")
        store_story(smith, "create-1", story_of("Log in", "Create the VM"))
        _read_until(process, "Create the VM: ok in 1.5 s")
        with smith.database_session() as session:
            job_queue.finish(session, lease, GOOD)
        assert process.wait(GIVE_UP_S) == 0


def test_an_interrupt_ends_following_without_a_traceback(smith: Cli) -> None:
    job_id = smith.submit()
    with _follow_job(smith, job_id) as process:
        _read_until(process, "received from FulcrumCore")
        process.send_signal(signal.SIGINT)
        assert process.wait(GIVE_UP_S) == 130


def test_follow_refuses_options_that_it_would_ignore(smith: Cli) -> None:
    job_id = smith.submit()
    assert smith("jobs", "log", str(job_id), "--follow", "--events").returncode == 2


def test_following_a_job_shows_the_same_steps_of_a_later_attempt_again(smith: Cli) -> None:
    job_id = smith.submit()
    with smith.database_session() as session:
        claim(session)
    smith.add_run(job_id, "create-1")
    store_story(smith, "create-1", story_of("Create the VM"))
    with _follow_job(smith, job_id) as process:
        _read_until(process, "Create the VM: ok in 1.5 s")
        smith.add_run(job_id, "create-2")
        store_story(smith, "create-2", story_of("Create the VM"))
        _read_until(process, "create.yml starts (create-2)")
        _read_until(process, "Create the VM: ok in 1.5 s")


def test_the_times_of_events_include_the_time_zone(smith: Cli) -> None:
    job_id = smith.submit()
    events = [
        {**_event("runner_on_ok", "Clone"), "created": "2026-11-27T10:00:00.123456+00:00"},
        {**_event("runner_on_ok", "Start"), "created": "2026-11-27T10:00:01"},
        {**_event("runner_on_ok", "Tag"), "created": "yesterday"},
    ]
    smith.run_of(job_id, "create-1", events=events)
    times = [row["time"] for row in smith.json("jobs", "log", str(job_id), "--events")]
    assert times == ["2026-11-27T10:00:00.123Z", "2026-11-27T10:00:01.000Z", None]
    assert "2026-11-27 10:00:00Z  ok" in smith.ok("jobs", "log", str(job_id), "--events")
    smith.add_run(job_id, "create-2")
    store_story(smith, "create-2", story_of("Create the VM"))
    (row,) = smith.json("jobs", "log", str(job_id), "--events")
    assert datetime.fromisoformat(row["time"]).utcoffset() is not None


@contextmanager
def _follow_job(smith: Cli, job_id: int) -> Iterator[subprocess.Popen[str]]:
    """Run `smith jobs log -f`, which prints the output of a job until the job ends."""
    process = subprocess.Popen(
        smith.command("jobs", "log", str(job_id), "-f"),
        env=smith.environment(),
        cwd=smith.folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _read_until(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"the command ended before it printed {text!r}")


def _event(kind: str, task: str, **data: object) -> dict[str, object]:
    """Return an event of ansible-runner about an Ansible task."""
    return {"event": kind, "created": "2026-01-01T10:00:00.123456+00:00", "event_data": {"task": task, **data}}
