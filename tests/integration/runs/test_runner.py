"""How runs end: their outcome, their artifacts, and that they leave no process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.run_site import (
    PUBLISH,
    Site,
    events_of,
    eventually,
    process_of,
    result_of,
)

from executor.model import RunStatus
from executor.redaction import Redactor
from executor.runs.actions import collection_folder
from executor.runs.run_until_file import RUN_UNTIL_FILE
from executor.runs.runner import Runner


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    for orphan in site.orphans():
        for process in (*orphan.children(recursive=True), orphan):
            process.kill()
    assert not list(site.paths.run_dir.glob("*/*.yml")), "a run left its secrets behind"


def test_a_successful_run_stores_its_events_output_and_outcome(site: Site) -> None:
    artifacts = site.runner.run(site.run_of(site.playbook(PUBLISH), vm={"name": "web-1"}))

    assert (artifacts.status, artifacts.rc) == (RunStatus.SUCCESSFUL, 0)
    assert artifacts.folder == site.paths.artifacts_dir / "run-1"
    assert result_of(artifacts) == {"vmid": 101, "name": "web-1"}
    assert [event["event"] for event in events_of(artifacts)][:: len(events_of(artifacts)) - 1] == [
        "playbook_on_start",
        "playbook_on_stats",
    ]
    assert "PLAY RECAP" in (artifacts.folder / "stdout").read_text()
    assert (artifacts.folder / "status").read_text() == "successful"
    assert (artifacts.folder / "rc").read_text() == "0"
    assert artifacts.started_at <= artifacts.ended_at


def test_artifacts_are_private_and_nothing_else_is_stored(site: Site) -> None:
    artifacts = site.runner.run(site.run_of(site.playbook(PUBLISH)))

    assert {path.name for path in artifacts.folder.iterdir()} == {"events.jsonl", "stdout", "rc", "status"}
    file_modes = {path.stat().st_mode & 0o777 for path in artifacts.folder.iterdir()}
    folder_modes = {
        path.stat().st_mode & 0o777 for path in (artifacts.folder, site.paths.artifacts_dir, site.paths.run_dir)
    }
    assert (file_modes, folder_modes) == ({0o600}, {0o700})
    assert [path.name for path in site.paths.run_dir.iterdir()] == [RUN_UNTIL_FILE]


def test_a_failed_run_has_its_error_and_the_result_published_before(site: Site) -> None:
    tasks = PUBLISH + "- name: Fail\n  ansible.builtin.fail:\n    msg: 'CAPACITY: no space'\n"

    artifacts = site.runner.run(site.run_of(site.playbook(tasks)))

    assert (artifacts.status, artifacts.rc) == (RunStatus.FAILED, 2)
    assert result_of(artifacts)["vmid"] == 101
    failures = [event for event in events_of(artifacts) if event["event"] == "runner_on_failed"]
    assert [event["event_data"]["res"]["msg"] for event in failures] == ["CAPACITY: no space"]


@pytest.mark.parametrize("text", ["- hosts: [", "- hosts: localhost\n  tasks:\n    - no.such.module: {}\n"])
def test_an_invalid_playbook_fails_with_the_error_in_its_output(site: Site, text: str) -> None:
    playbook = site.home / "broken.yml"
    playbook.write_text(text)

    artifacts = site.runner.run(site.run_of(playbook))

    assert (artifacts.status, artifacts.rc) == (RunStatus.FAILED, 4)
    assert "ERROR" in (artifacts.folder / "stdout").read_text()
    assert any("ERROR" in event["stdout"] for event in events_of(artifacts))


def test_f24_a_run_without_output_at_its_end_has_not_failed(site: Site) -> None:
    """A run has no output at its end until pexpect would time out → its outcome is that of its events."""
    silence = "- name: Say nothing for longer than five seconds\n  ansible.builtin.wait_for:\n    timeout: 6\n"

    artifacts = site.runner.run(site.run_of(site.playbook(PUBLISH + silence)))

    assert (artifacts.status, artifacts.rc) == (RunStatus.SUCCESSFUL, 0)
    assert result_of(artifacts)["vmid"] == 101


def test_a_timed_out_run_ends_with_all_its_processes(site: Site) -> None:
    """No single property identifies all processes of the run.

    The workers of ansible-core leave the run's process group, and the processes of this play also leave its session and
    its environment.
    """
    playbook = site.stubborn()
    for timeout_s in (4, 8, 16, 32):  # on a busy machine the play may need longer to start its processes
        artifacts = site.runner.run(site.run_of(playbook, ident=f"run-{timeout_s}", timeout_s=timeout_s))
        assert (artifacts.status, artifacts.rc) == (RunStatus.TIMEOUT, 254)
        if site.is_busy():
            break

    assert site.is_busy()
    assert site.orphans() == []
    assert events_of(artifacts)


def test_a_cancelled_run_ends_with_all_its_processes(site: Site) -> None:
    artifacts = site.runner.run(site.run_of(site.stubborn()), should_cancel=site.is_busy)

    assert artifacts.status is RunStatus.CANCELED
    assert site.is_busy()
    assert site.orphans() == []


def test_a_run_killed_by_its_ident_from_another_thread_is_canceled(site: Site) -> None:
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(site.runner.run, site.run_of(site.stubborn()))
        eventually(site.is_busy)
        site.runner.kill("run-1")
        assert site.orphans() == []
        assert future.result().status is RunStatus.CANCELED


def test_killing_an_ended_or_unknown_run_does_nothing(site: Site) -> None:
    site.runner.run(site.run_of(site.playbook(PUBLISH)))

    site.runner.kill("run-1")
    site.runner.kill("run-2")


def test_an_exception_of_should_cancel_is_raised_after_the_run_has_ended(site: Site) -> None:
    def raise_once_the_run_waits() -> bool:
        if site.is_waiting():
            raise LookupError("database gone")
        return False

    with pytest.raises(LookupError, match="database gone"):
        site.runner.run(site.run_of(site.waiting()), should_cancel=raise_once_the_run_waits)

    assert site.orphans() == []
    assert [path.name for path in site.paths.run_dir.iterdir()] == [RUN_UNTIL_FILE]


@pytest.mark.parametrize("command_part", ["/ansible-playbook", "process_tree.py guard"])
def test_f23_a_run_killed_from_outside_is_failed_and_leaves_no_process(site: Site, command_part: str) -> None:
    """A run, its guard or its module is killed → the run has failed, and no process of it is left."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(site.runner.run, site.run_of(site.stubborn()))
        eventually(site.is_busy)
        killed_process = process_of(site, command_part)
        assert killed_process is not None
        killed_process.kill()
        artifacts = future.result()

    assert (artifacts.status, artifacts.rc) == (RunStatus.FAILED, 137)
    assert [process for process in site.orphans() if "SMITH_RUN_IDENT" in process.environ()] == []
    assert command_part != "/ansible-playbook" or site.orphans() == []


def test_a_run_ends_even_if_its_guard_is_suspended(site: Site) -> None:
    cancelled = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(site.runner.run, site.run_of(site.stubborn()), should_cancel=cancelled.is_set)
        eventually(site.is_busy)
        guard = process_of(site, "process_tree.py guard")
        assert guard is not None
        guard.suspend()
        cancelled.set()
        artifacts = future.result()

    assert (artifacts.status, artifacts.rc) == (RunStatus.CANCELED, 254)
    assert site.orphans() == []


def test_a_successful_run_leaves_no_process(site: Site) -> None:
    orphan_command = f"setsid sleep 600 >/dev/null 2>&1 & echo $! > {site.folder}/x.pid"
    tasks = f"- name: Leave one\n  ansible.builtin.shell: {orphan_command}\n"

    artifacts = site.runner.run(site.run_of(site.playbook(tasks)))

    assert artifacts.status is RunStatus.SUCCESSFUL
    assert site.orphans() == []


def test_concurrent_runs_do_not_affect_each_other(site: Site) -> None:
    good = site.playbook(PUBLISH)
    bad = site.playbook(PUBLISH + "- name: Fail\n  ansible.builtin.fail:\n    msg: 'no'\n")
    planned_runs = [
        site.run_of(bad if n % 3 == 0 else good, ident=f"run-{n}", vm={"name": f"vm-{n}"}) for n in range(6)
    ]

    threads_before = set(threading.enumerate())  # a thread of an earlier test may still end

    with ThreadPoolExecutor(6) as pool:
        all_artifacts = list(pool.map(site.runner.run, planned_runs))

    assert [result_of(artifacts)["name"] for artifacts in all_artifacts] == [f"vm-{n}" for n in range(6)]
    assert [artifacts.rc for artifacts in all_artifacts] == [2, 0, 0, 2, 0, 0]
    assert set(threading.enumerate()) <= threads_before


def test_a_run_uses_the_credentials_that_are_valid_at_its_start(site: Site) -> None:
    tokens = iter(["first-secret-token", "second-secret-token"])
    runner = Runner(site.paths, lambda: {"api_token_secret": next(tokens)}, redactor=Redactor())
    tasks = """
        - name: Measure
          ansible.builtin.set_stats:
            data:
              vm_result: "{{ credentials | string | length }}"
            per_host: false
    """
    playbook = site.playbook(tasks)

    lengths = [result_of(runner.run(site.run_of(playbook, ident=f"run-{n}"))) for n in range(2)]

    assert int(lengths[1]) - int(lengths[0]) == len("second") - len("first")


def test_the_collection_folder_of_a_checkout_is_its_top_level() -> None:
    assert (collection_folder() / "ansible.cfg").is_file()


def test_a_missing_command_is_an_error_in_the_output() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", _process_tree_file(), "guard", "no-such-command"],
        stdin=subprocess.PIPE,
        capture_output=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (127, b"no-such-command: No such file or directory\n")


@pytest.mark.parametrize(("script", "code"), [("exit 3", 3), ("kill -TERM $$", 128 + signal.SIGTERM)])
def test_a_guard_exits_with_the_code_of_its_command(script: str, code: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-I", "-S", _process_tree_file(), "guard", "sh", "-c", script], stdin=subprocess.PIPE
    ) as guard:
        assert guard.wait() == code


def _process_tree_file() -> str:
    from executor.processes import process_tree  # noqa: PLC0415  only the file's path is needed

    return os.path.abspath(process_tree.__file__)
