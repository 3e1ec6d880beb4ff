"""Ansible tasks that are executed in the process of a warm run: changes to their inputs, crashes, timeouts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.warm_site import Site, debug, events_of, run_dir, said

from executor.model import PlaybookRun, RunArtifacts, RunStatus

__all__ = ["run_dir"]
pytestmark = [pytest.mark.xdist_group("warm"), pytest.mark.timeout(300)]

#: The id of the process that executes the Ansible task.
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
- name: Change the inputs of the Ansible task
  greedy:
    text: "{{ word }}"
  vars:
    word: asked
  loop: [1, 2]
- name: Print the inputs of the next Ansible task
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
- name: Limit the time
  block:
    - name: Time out
      ansible.builtin.wait_for:
        timeout: 30
      timeout: 1
  rescue:
    - name: Print the error
      ansible.builtin.debug:
        msg: "{{ ansible_failed_result.msg }}"
"""


@pytest.fixture
def site(tmp_path: Path, run_dir: Path) -> Iterator[Site]:
    site = Site(tmp_path, run_dir)
    yield site
    site.runner.stop_warm_server()


def install_action_plugin(site: Site, name: str, source: str) -> None:
    folder = site.home / "playbooks" / "action_plugins"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(source)


def events_and_tasks(artifacts: RunArtifacts) -> list[tuple[str, str]]:
    """Return the names of each event and its Ansible task, in order."""
    return [(event["event"], event.get("event_data", {}).get("task", "")) for event in events_of(artifacts)]


@pytest.mark.parametrize(("hosts", "expected_process_count"), [("here", 1), ("all", 4)])
def test_ansible_tasks_of_one_host_share_a_process_and_those_of_several_are_forked(
    site: Site, hosts: str, expected_process_count: int
) -> None:
    done = site.warmed().play(TWO_TASKS, hosts=hosts)

    parents = said(done).split()
    assert done.rc == 0
    assert len(parents) == (2 if hosts == "here" else 4)
    assert len(set(parents)) == expected_process_count


def test_changes_of_an_ansible_task_to_its_inputs_do_not_affect_the_play(site: Site) -> None:
    install_action_plugin(site, "greedy", GREEDY_PLUGIN)
    planned = site.run_of(GREEDY, vm={"name": "web"})
    cold = site.runner.run(planned)
    site.warmed()
    warm = site.runner.run(PlaybookRun(**{**vars(planned), "ident": "warm"}))

    assert said(cold) == said(warm)
    assert "nothing, no item, web" in said(warm)
    assert events_and_tasks(cold) == events_and_tasks(warm)


def test_a_crash_of_an_ansible_task_fails_the_run_warm_and_cold(site: Site) -> None:
    install_action_plugin(site, "breaking", BREAKING_PLUGIN)
    planned = site.run_of("- name: Break\n  breaking:\n" + TWO_TASKS)
    cold = site.runner.run(planned)
    site.warmed()
    warm = site.runner.run(PlaybookRun(**{**vars(planned), "ident": "warm"}))

    assert cold.status is warm.status is RunStatus.FAILED
    assert cold.rc == warm.rc != 0
    assert said(cold) == said(warm) == ""


def test_the_timeout_of_an_ansible_task_applies(site: Site) -> None:
    done = site.warmed().play(SLOW)

    assert done.rc == 0
    assert "Timed out after 1 second" in said(done)


def test_a_result_larger_than_the_buffer_of_a_pipe_is_received(site: Site) -> None:
    """The play writes the result to a pipe that it reads in another thread."""
    done = site.warmed().play(debug("{{ 'x' * 400000 }}"))

    assert done.rc == 0
    assert said(done).count("x") == 400_000
