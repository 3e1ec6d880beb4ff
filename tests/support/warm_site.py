"""A folder of playbooks, and a runner with a warm server: a process that has imported Ansible and forks the runs."""

from __future__ import annotations

import json
import tempfile
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from executor.model import PlaybookRun, RunArtifacts
from executor.processes import process_tree
from executor.redaction import Redactor
from executor.runs.runner import Runner, RunnerPaths

TOKEN = "canary-token-Zt7Kq2"
#: A Jinja template for the command line of the process that runs the play: the warm server's, or ansible-playbook's.
WHICH = "{{ lookup('ansible.builtin.pipe', 'cat /proc/$PPID/cmdline | tr \"\\\\0\" \" \"') }}"
#: An Ansible task whose processes, one of them an orphan process, ignore TERM.
STUBBORN = """
- name: Start processes that ignore TERM
  ansible.builtin.shell: |
    trap '' TERM
    env -i {folder}/orphan.sh {folder} &
    echo $$ > {folder}/shell.pid
    sleep 600
  args:
    executable: /bin/sh
"""
ORPHAN = """#!/bin/sh
trap '' TERM
PATH=/usr/bin:/bin
setsid sh -c 'trap "" TERM; echo $$ > "$0/orphan.tmp"; mv "$0/orphan.tmp" "$0/orphan.pid"; sleep 600' "$1" &
"""


class Site:
    """A folder of playbooks, and a warm runner for it."""

    def __init__(self, folder: Path, run_dir: Path) -> None:
        self.folder = folder
        self.home = folder / "ansible"
        (self.home / "playbooks").mkdir(parents=True)
        (self.home / "ansible.cfg").write_text("[defaults]\ninventory = inventory.yml\n")
        local = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
        hosts = {"here": local, "there": local}
        (self.home / "inventory.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts}}))
        paths = RunnerPaths(collection_folder=self.home, run_dir=run_dir, artifacts_dir=folder / "artifacts")
        self.runner = Runner(paths, lambda: {"api_token_secret": TOKEN}, redactor=Redactor())
        self.run_dir = paths.run_dir

    def warmed(self) -> Site:
        """Start the warm server and wait for it."""
        self.runner.start_warm_server()
        eventually(self.runner.warm_server_pid)
        return self

    def play(self, tasks: str, ident: str = "", **fields: Any) -> RunArtifacts:
        """Run a play of these Ansible tasks."""
        return self.runner.run(self.run_of(tasks, ident, **fields))

    def run_of(self, tasks: str, ident: str = "", hosts: str = "here", **fields: Any) -> PlaybookRun:
        """Write a playbook with these Ansible tasks; return a run of it, which is not started."""
        name = uuid.uuid4().hex[:8]
        file = self.home / "playbooks" / f"{name}.yml"
        head = f"---\n- name: Play\n  hosts: {hosts}\n  gather_facts: false\n  tasks:\n"
        file.write_text(head + textwrap.indent(textwrap.dedent(tasks), "    "))
        fields = {"vm": {}, "timeout_s": 60.0} | fields
        return PlaybookRun(ident=ident or f"run-{name}", action="test", playbook=file, **fields)

    def stubborn(self) -> str:
        """Write the script of the orphan process; return an Ansible task whose processes ignore TERM."""
        orphan = self.folder / "orphan.sh"
        orphan.write_text(ORPHAN)
        orphan.chmod(0o700)
        return STUBBORN.format(folder=self.folder)

    def is_busy(self) -> bool:
        """Return whether both processes of the task of `stubborn` have started."""
        return len(list(self.folder.glob("*.pid"))) == 2

    def orphans(self) -> list[int]:
        pids = [int(file.read_text()) for file in self.folder.glob("*.pid")]
        return [pid for pid in pids if is_alive(pid)]


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def eventually(condition: Callable[[], Any], within_s: float = 60.0) -> Any:
    limit = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < limit, "did not happen in time"
        time.sleep(0.05)
    return value


def events_of(artifacts: RunArtifacts) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (artifacts.folder / "events.jsonl").read_text().splitlines()]


def said(artifacts: RunArtifacts) -> str:
    """Return the messages of the Ansible `debug` tasks of the run."""
    messages = [event.get("event_data", {}).get("res", {}).get("msg") for event in events_of(artifacts)]
    return "\n".join(str(message) for message in messages if message)


def was_warm(artifacts: RunArtifacts) -> bool:
    """Return whether a warm server made the run. Its play must show the template `WHICH` by an Ansible `debug` task."""
    return "executor.runs.warm.playbook_server" in said(artifacts)


def debug(text: str) -> str:
    return f"- name: Say\n  ansible.builtin.debug:\n    msg: {json.dumps(text)}\n"


def unavailable(logs: list[Any]) -> list[str]:
    """Return the logged reasons why no warm run was possible."""
    return [entry["reason"] for entry in logs if entry["event"] == "warm_unavailable"]


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """Return a folder with a path so short that a run's temporary folder needs no link."""
    with tempfile.TemporaryDirectory(prefix="w") as folder:
        yield Path(folder, "r")


@pytest.fixture
def site(tmp_path: Path, run_dir: Path) -> Iterator[Site]:
    site = Site(tmp_path, run_dir)
    yield site
    site.runner.stop_warm_server()
    for pid in site.orphans():
        process_tree.end_processes(
            lambda pid=pid: {pid, *process_tree.descendants(pid)} if is_alive(pid) else (), grace_s=0
        )
