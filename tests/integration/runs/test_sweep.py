"""The sweep (`end_earlier_runs`), by which an agent at its start ends the runs of an agent that has died.

No process of these runs is left, and their artifacts are stored.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.run_site import (
    PUBLISH,
    Site,
    commands_and_environments_of,
    eventually,
    process_of,
    result_of,
)

from executor.model import RunStatus
from executor.runs.run_until_file import RUN_UNTIL_FILE
from executor.runs.runner import Runner, RunnerPaths


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    for orphan in site.orphans():
        for process in (*orphan.children(recursive=True), orphan):
            process.kill()
    assert not list(site.paths.run_dir.glob("*/*.yml")), "a run left its secrets behind"


#: An agent process that executes one run. Arguments: Ansible's home, folder, playbook.
AGENT = """
import sys
from pathlib import Path
from executor.model import PlaybookRun
from executor.runs.run_until_file import RUN_UNTIL_FILE
from executor.runs.runner import Runner, RunnerPaths

home, folder, playbook = (Path(argument) for argument in sys.argv[1:])
paths = RunnerPaths(collection_folder=home, run_dir=folder / "run", artifacts_dir=folder / "artifacts")
runner = Runner(paths, lambda: {"api_token_secret": "canary-of-another-process"})
runner.run(PlaybookRun(ident="run-1", action="test", playbook=playbook, vm={"name": "x"}, timeout_s=600))
"""


@pytest.fixture
def other_agent(site: Site) -> Iterator[subprocess.Popen[bytes]]:
    """Start another agent process with a stubborn run in the same folders."""
    command = [sys.executable, "-c", AGENT, str(site.home), str(site.folder), str(site.stubborn())]
    with subprocess.Popen(command) as process:
        eventually(site.is_busy)
        yield process
        process.kill()


def test_r7_a_killed_agent_leaves_no_process_of_its_runs(site: Site, other_agent: subprocess.Popen[bytes]) -> None:
    """Without a supervisor: the run's guard sees that the agent has died."""
    other_agent.kill()

    eventually(lambda: not site.orphans())
    eventually(lambda: not commands_and_environments_of(site))
    site.runner.end_earlier_runs()


def test_a_sweep_ends_orphan_processes_and_stores_their_artifacts(
    site: Site, other_agent: subprocess.Popen[bytes]
) -> None:
    guard = process_of(site, "process_tree.py guard")
    assert guard is not None
    guard.suspend()  # only the sweep can end the run
    other_agent.kill()

    assert site.runner.end_earlier_runs() == ["run-1"]

    assert site.orphans() == []
    assert [path.name for path in site.paths.run_dir.iterdir()] == [RUN_UNTIL_FILE]
    artifacts_folder = site.paths.artifacts_dir / "run-1"
    assert (artifacts_folder / "status").read_text() == "failed"
    assert "playbook_on_start" in (artifacts_folder / "events.jsonl").read_text()
    assert site.runner.end_earlier_runs() == []


def test_a_sweep_does_not_affect_the_runs_of_other_agents(
    site: Site, other_agent: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    paths = RunnerPaths(collection_folder=site.home, run_dir=tmp_path / "ru", artifacts_dir=tmp_path / "other")

    assert Runner(paths, dict).end_earlier_runs() == []

    assert len(site.orphans()) == 2
    assert other_agent.poll() is None
    other_agent.kill()
    other_agent.wait()  # it would store the artifacts of its run at the same time as the sweep
    site.runner.end_earlier_runs()


def test_f33_artifacts_that_cannot_be_moved_stay_readable_and_are_moved_by_the_next_sweep(site: Site) -> None:
    """Artifacts cannot be moved to their folder → they stay readable on tmpfs, and the next start moves them."""
    site.paths.artifacts_dir.touch()  # a file in place of the folder

    artifacts = site.runner.run(site.run_of(site.playbook(PUBLISH)))

    assert artifacts.status is RunStatus.SUCCESSFUL
    assert result_of(artifacts)["vmid"] == 101
    site.paths.artifacts_dir.unlink()
    assert site.runner.end_earlier_runs() == []
    assert "101" in (site.paths.artifacts_dir / "run-1" / "events.jsonl").read_text()
    assert [path.name for path in site.paths.run_dir.iterdir()] == [RUN_UNTIL_FILE]
