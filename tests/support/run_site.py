"""A folder of playbooks and a runner for it."""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

from executor.model import PlaybookRun, RunArtifacts
from executor.redaction import Redactor
from executor.runs.runner import Runner, RunnerPaths

TOKEN = "canary-token-Zt7Kq2"
CREDENTIALS = {"api_host": "pve.example", "api_port": 8006, "api_token_secret": TOKEN, "validate_certs": True}

#: Starts a shell, a child, and a child in its own session with an empty environment; all ignore TERM.
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
    """A folder of playbooks, and a runner for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "ansible"
        self.home.mkdir()
        (self.home / "ansible.cfg").write_text("[defaults]\ninventory = inventory.yml\n")
        read = "{{ lookup('ansible.builtin.file', lookup('env', 'SMITH_CREDENTIALS_FILE')) | from_yaml }}"
        local = {"hosts": {"localhost": {"ansible_connection": "local"}}, "vars": {"credentials": read}}
        (self.home / "inventory.yml").write_text(yaml.safe_dump({"all": local}))
        self.paths = RunnerPaths(
            collection_folder=self.home, run_dir=folder / "run", artifacts_dir=folder / "artifacts"
        )
        self.redactor = Redactor()
        self.runner = Runner(self.paths, lambda: dict(CREDENTIALS), redactor=self.redactor)

    def playbook(self, tasks: str) -> Path:
        """Write a play of these tasks."""
        path = self.home / f"play-{len(list(self.home.iterdir()))}.yml"
        head = "---\n- name: Play\n  hosts: localhost\n  gather_facts: false\n  tasks:\n"
        path.write_text(head + textwrap.indent(textwrap.dedent(tasks), "    "))
        return path

    def stubborn(self) -> Path:
        """Write a play whose processes ignore TERM."""
        orphan = self.folder / "orphan.sh"
        orphan.write_text(ORPHAN)
        orphan.chmod(0o700)
        return self.playbook(STUBBORN.format(folder=self.folder))

    def waiting(self, before: str = "") -> Path:
        """Write a play that waits and ends on TERM."""
        wait = f"echo $$ > {self.folder}/waiting.pid; sleep 600"
        return self.playbook(f"{before}- name: Wait\n  ansible.builtin.shell: {wait}\n")

    def is_waiting(self) -> bool:
        """True when the waiting play has started."""
        return (self.folder / "waiting.pid").exists()

    def run_of(self, playbook: Path, ident: str = "run-1", **fields: Any) -> PlaybookRun:
        """Return a run of this playbook."""
        fields = {"vm": {}, "timeout_s": 60.0} | fields
        return PlaybookRun(ident=ident, action="test", playbook=playbook, **fields)

    def orphans(self) -> list[psutil.Process]:
        """Return the processes of a stubborn play that are alive."""
        pids = [int(file.read_text()) for file in self.folder.glob("*.pid")]
        return [process for pid in pids if (process := is_alive(pid))]

    def is_busy(self) -> bool:
        """True when a stubborn play has started all its processes."""
        return len(list(self.folder.glob("*.pid"))) == 2


def is_alive(pid: int) -> psutil.Process | None:
    """Return the process with this id if it is alive, otherwise None."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process
    except psutil.NoSuchProcess:
        return None


def eventually(condition: Callable[[], Any], within_s: float = 30.0) -> Any:
    """Wait until the condition returns a true value; return this value."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)
    return found


def events_of(artifacts: RunArtifacts) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (artifacts.folder / "events.jsonl").read_text().splitlines()]


def result_of(artifacts: RunArtifacts) -> Any:
    """Return the `vm_result` of the run's final event, or else that of the first `set_stats`."""
    data = [event.get("event_data", {}) for event in events_of(artifacts)]
    found = [item["artifact_data"]["vm_result"] for item in data if "artifact_data" in item]
    found += [
        item["res"]["ansible_stats"]["data"]["vm_result"] for item in data if "ansible_stats" in item.get("res", {})
    ]
    return found[0]


def process_of(site: Site, word: str) -> psutil.Process | None:
    """Return the first process of the site's runs that has this text in the first five words of its command line."""
    for process in psutil.process_iter():
        try:
            credentials_file = process.environ().get("SMITH_CREDENTIALS_FILE", "")
            if credentials_file.startswith(f"{site.paths.run_dir}/") and word in " ".join(process.cmdline()[:5]):
                return process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return None


PUBLISH = """
- name: Publish
  ansible.builtin.set_stats:
    data:
      vm_result:
        vmid: 101
        name: "{{ vm.name | default('') }}"
    per_host: false
    aggregate: false
"""


def commands_and_environments_of(site: Site) -> list[bytes]:
    """Return arguments and environment of all processes of the site's run from /proc."""
    contents = []
    for process in psutil.process_iter():
        folder = Path("/proc", str(process.pid))
        try:
            environ = (folder / "environ").read_bytes()
            if f"SMITH_CREDENTIALS_FILE={site.paths.run_dir}/".encode() in environ:
                contents.append((folder / "cmdline").read_bytes() + b"\n" + environ)
        except OSError:
            continue
    return contents
