"""An agent is suspended during a run: the guard ends the run when the agent has not renewed its leases in time."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from executor.processes import process_tree
from executor.runs.private_folder import CREDENTIALS_VARIABLE

pytestmark = [pytest.mark.xdist_group("warm")]

#: An agent process that executes one run. Arguments: folder, warm or cold, how many seconds the leases are valid. When
#: the run has begun, the process writes until when the run may continue, and suspends itself.
AGENT = """
import json, os, signal, sys, threading, time
from pathlib import Path
from executor.model import PlaybookRun
from executor.redaction import Redactor
from executor.runs import results
from executor.runs.runner import Runner, RunnerPaths
from executor.shared.run_until import boottime_s

folder, mode, lease_s = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
paths = RunnerPaths(collection_folder=folder / "ansible", run_dir=folder / "run", artifacts_dir=folder / "artifacts")
runner = Runner(paths, lambda: {"api_host": "pve.example"}, redactor=Redactor())
runner.end_earlier_runs()
if mode == "warm":
    runner.start_warm_server(are_warm_runs_required=True)
    while not runner.warm_server_pid():
        time.sleep(0.05)

def suspend():
    while not (folder / "begun").exists():
        time.sleep(0.05)
    runner.set_runs_deadline(boottime_s() + lease_s)
    (folder / "ending").write_text(f"in {lease_s} s")
    os.kill(os.getpid(), signal.SIGSTOP)

threading.Thread(target=suspend, daemon=True).start()
run = PlaybookRun(ident="run-1", action="t", playbook=folder / "ansible/playbooks/play.yml", vm={}, timeout_s=300)
artifacts = runner.run(run)
result = results.read_result(artifacts)
print(json.dumps({
    "status": artifacts.status, "rc": artifacts.rc, "code": result.code, "is_effect_unknown": result.is_effect_unknown,
}), flush=True)
runner.stop_warm_server()
"""
#: Adds a line to the file `ticks` until the file `end` exists. A child in a session of its own ignores TERM.
TICK = (
    "touch {0}/begun; setsid sh -c 'trap \"\" TERM; exec sleep 600' & "
    "until [ -e {0}/end ]; do echo tick >> {0}/ticks; sleep 0.05; done; kill -9 $!"
)
PLAY = """---
- name: Play
  hosts: all
  gather_facts: false
  tasks:
    - name: Tick
      ansible.builtin.shell: {tick}
    - name: Publish
      ansible.builtin.set_stats:
        data:
          vm_result: {{vmid: 101}}
        per_host: false
        aggregate: false
"""


class SuspendedAgent:
    """An agent process that is suspended in the middle of its run."""

    def __init__(self, folder: Path, process: subprocess.Popen[str]) -> None:
        self.folder = folder
        self._process = process

    def is_suspended(self) -> bool:
        return psutil.Process(self._process.pid).status() == psutil.STATUS_STOPPED

    def processes_of_run(self) -> set[int]:
        """Return the processes of the run that have not ended. The suspended agent cannot reap its child."""
        return process_tree.processes_with_variable(CREDENTIALS_VARIABLE, f"{self.folder}/run/run-1/")

    def tick_count(self) -> int:
        return len((self.folder / "ticks").read_text().splitlines())

    def resume_and_wait(self) -> dict[str, Any]:
        """Resume the agent; return how the run has ended."""
        self._process.send_signal(signal.SIGCONT)
        output, _ = self._process.communicate()
        return dict(json.loads(output.splitlines()[-1]))


def eventually(condition: Callable[[], Any], within_s: float = 60.0) -> None:
    limit = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < limit, "did not happen in time"
        time.sleep(0.05)


@contextmanager
def suspended_agent(folder: Path, mode: str, lease_s: float) -> Iterator[SuspendedAgent]:
    home = folder / "ansible"
    (home / "playbooks").mkdir(parents=True)
    (home / "ansible.cfg").write_text("[defaults]\ninventory = inventory.yml\n")
    local = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
    (home / "inventory.yml").write_text(json.dumps({"all": {"hosts": {"here": local}}}))
    (home / "playbooks/play.yml").write_text(PLAY.format(tick=json.dumps(TICK.format(folder))))
    command = [sys.executable, "-c", AGENT, str(folder), mode, str(lease_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        agent = SuspendedAgent(folder, process)
        try:
            eventually(lambda: agent.is_suspended() and (folder / "ticks").exists())
            yield agent
        finally:
            process.kill()


@pytest.mark.parametrize("mode", ["cold", "warm"])
def test_the_run_of_a_suspended_agent_ends_when_its_leases_were_not_renewed_in_time(tmp_path: Path, mode: str) -> None:
    with suspended_agent(tmp_path, mode, lease_s=1) as agent:
        eventually(lambda: not agent.processes_of_run())
        assert agent.is_suspended()
        tick_count = agent.tick_count()
        outcome = agent.resume_and_wait()

    assert outcome == {"status": "failed", "rc": 253, "code": "LEASE_LOST", "is_effect_unknown": True}
    assert agent.tick_count() == tick_count


@pytest.mark.parametrize("mode", ["cold", "warm"])
def test_the_run_of_a_suspended_agent_continues_while_its_leases_are_valid(tmp_path: Path, mode: str) -> None:
    with suspended_agent(tmp_path, mode, lease_s=float("inf")) as agent:
        eventually(lambda: agent.tick_count() > 40)  # each tick takes at least 0.05 s, a check of the guard 1 s
        assert agent.is_suspended()
        (tmp_path / "end").touch()
        eventually(lambda: not agent.processes_of_run())
        outcome = agent.resume_and_wait()

    assert outcome == {"status": "successful", "rc": 0, "code": None, "is_effect_unknown": False}
