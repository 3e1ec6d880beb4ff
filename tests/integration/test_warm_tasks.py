"""Tasks in the run's own process: what they keep to themselves, and what becomes of one that breaks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.test_warm import Site, debug, events_of, run_dir, said

from executor.model import PlaybookRun, RunArtifacts, RunStatus

__all__ = ["run_dir"]
pytestmark = [pytest.mark.xdist_group("warm"), pytest.mark.timeout(300)]

PARENT = "{{ lookup('ansible.builtin.pipe', 'echo $PPID') }}"
TWO_TASKS = f"""
- name: Say once
  ansible.builtin.debug:
    msg: "{PARENT}"
- name: Say twice
  ansible.builtin.debug:
    msg: "{PARENT}"
"""
GREEDY = """
- name: Change what it was handed
  greedy:
    text: "{{ word }}"
  vars:
    word: asked
  loop: [1, 2]
- name: Say what is left
  ansible.builtin.debug:
    msg: "{{ word | default('nothing') }}, {{ item | default('no item') }}, {{ vm.name }}"
"""
GREEDY_PLUGIN = """
from ansible.plugins.action import ActionBase

class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        task_vars["word"], task_vars["vm"] = "taken", {"name": "another"}
        self._task.args["text"], self._task.name = "changed", "another"
        return {"changed": False}
"""
BREAKING_PLUGIN = """
from ansible.plugins.action import ActionBase

class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        raise KeyboardInterrupt("a task that breaks")
"""
SLOW = """
- name: Bound it
  block:
    - name: Outlive its time
      ansible.builtin.wait_for:
        timeout: 30
      timeout: 1
  rescue:
    - name: Say what came of it
      ansible.builtin.debug:
        msg: "{{ ansible_failed_result.msg }}"
"""


@pytest.fixture
def site(tmp_path: Path, run_dir: Path) -> Iterator[Site]:
    site = Site(tmp_path, run_dir)
    yield site
    site.runner.stop_warm()


def plugin(site: Site, name: str, source: str) -> None:
    folder = site.home / "playbooks" / "action_plugins"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(source)


def told(artifacts: RunArtifacts) -> list[tuple[str, str]]:
    """Each event's name and its task's, in order."""
    return [(event["event"], event.get("event_data", {}).get("task", "")) for event in events_of(artifacts)]


@pytest.mark.parametrize(("hosts", "processes"), [("here", 1), ("all", 4)])
def test_tasks_of_one_host_share_the_runs_process_and_those_of_several_are_forked(
    site: Site, hosts: str, processes: int
) -> None:
    done = site.warmed().play(TWO_TASKS, hosts=hosts)

    parents = said(done).split()
    assert done.rc == 0
    assert len(parents) == (2 if hosts == "here" else 4)
    assert len(set(parents)) == processes


def test_what_a_task_does_to_what_it_was_handed_stays_with_it(site: Site) -> None:
    plugin(site, "greedy", GREEDY_PLUGIN)
    order = site.order(GREEDY, vm={"name": "web"})
    cold = site.runner.run(order)
    site.warmed()
    warm = site.runner.run(PlaybookRun(**{**vars(order), "ident": "warm"}))

    assert said(cold) == said(warm)
    assert "nothing, no item, web" in said(warm)
    assert told(cold) == told(warm)


def test_a_task_that_breaks_fails_the_run_as_one_whose_fork_has_died(site: Site) -> None:
    plugin(site, "breaking", BREAKING_PLUGIN)
    order = site.order("- name: Break\n  breaking:\n" + TWO_TASKS)
    cold = site.runner.run(order)
    site.warmed()
    warm = site.runner.run(PlaybookRun(**{**vars(order), "ident": "warm"}))

    assert cold.status is warm.status is RunStatus.FAILED
    assert cold.rc == warm.rc != 0
    assert said(cold) == said(warm) == ""


def test_a_tasks_own_time_limit_holds(site: Site) -> None:
    done = site.warmed().play(SLOW)

    assert done.rc == 0
    assert "Timed out after 1 second" in said(done)


def test_a_result_that_no_pipe_holds_at_once_arrives(site: Site) -> None:
    """The play writes it to the pipe that it reads itself, in another thread."""
    done = site.warmed().play(debug("{{ 'x' * 400000 }}"))

    assert done.rc == 0
    assert said(done).count("x") == 400_000
