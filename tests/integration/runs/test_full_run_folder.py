"""Runs whose run folder is full: a small tmpfs that each test mounts in a mount namespace of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from executor.model import PlaybookRun
from executor.runs.run_until_file import RUN_UNTIL_FILE
from executor.runs.runner import Runner, RunnerPaths

#: Mounts the tmpfs, and executes the playbook. Arguments: folder, size of the tmpfs, warm or cold, time limit
#: in seconds for a run that makes no progress after the folder was full.
SCRIPT = """
import json, subprocess, sys, threading, time
from pathlib import Path
folder, size, mode, standstill_s = Path(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])
(folder / "run").mkdir(mode=0o700)
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "smith-test", folder / "run"], check=True)

from executor.model import PlaybookRun
from executor.redaction import Redactor
from executor.runs import execution, results
from executor.runs.runner import Runner, RunnerPaths
from executor.runs.warm.servers import WarmServerKeeper

execution.MAX_TIME_WITHOUT_OUTPUT_S = standstill_s
home = folder / "ansible"
paths = RunnerPaths(collection_folder=home, run_dir=folder / "run", artifacts_dir=folder / "artifacts")
runner = Runner(paths, lambda: {"api_host": "pve.example"}, redactor=Redactor())
runner.end_earlier_runs()
if mode == "warm":
    runner.start_warm_server(are_warm_runs_required=True)
    while not runner.warm_server_pid():
        time.sleep(0.05)

def end_runs_when_full():
    while not (folder / "end runs").exists():
        time.sleep(0.05)
    runner.set_runs_deadline(0.0)

threading.Thread(target=end_runs_when_full, daemon=True).start()
answer = {}
try:
    artifacts = runner.run(
        PlaybookRun(ident="run-1", action="test", playbook=home / "play.yml", vm={}, timeout_s=100)
    )
    result = results.read_result(artifacts)
    answer = {"status": artifacts.status, "rc": artifacts.rc, "killed": result.is_effect_unknown, "vm": result.vm}
except OSError as error:
    answer = {"errno": error.errno}
(folder / "run" / "full").unlink(missing_ok=True)
runner.stop_warm_server()
answer["left"] = [path.name for path in (folder / "run").iterdir()]
print("ANSWER " + json.dumps(answer), flush=True)
"""

FILL_RUN_FOLDER = "dd if=/dev/zero of={folder}/run/full bs=4k; true"
PLAY = """---
- name: Play
  hosts: localhost
  gather_facts: false
  tasks:
    - name: Fill the run folder
      ansible.builtin.shell: {command}
    - name: Print
      ansible.builtin.debug:
        msg: "{{{{ 'x' * 5000 }}}}"
      loop: "{{{{ range(50) | list }}}}"
    - name: Publish
      ansible.builtin.set_stats:
        data:
          vm_result: {{vmid: 101}}
        per_host: false
        aggregate: false
"""


def execute_with_small_run_folder(
    folder: Path, mode: str, command: str, *, size: str = "4m", standstill_s: float = 60
) -> dict[str, Any]:
    """Execute the playbook in a new mount namespace. Skip the test if this process may not create one."""
    if subprocess.run(["/usr/bin/env", "unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a file system")
    home = folder / "ansible"
    home.mkdir()
    (home / "ansible.cfg").write_text("[defaults]\ninventory = inventory.yml\n")
    local = {"all": {"hosts": {"localhost": {"ansible_connection": "local"}}}}
    (home / "inventory.yml").write_text(json.dumps(local))
    (home / "play.yml").write_text(PLAY.format(command=json.dumps(command.format(folder=folder))))
    done = subprocess.run(
        ["/usr/bin/env", "unshare", "-m", sys.executable, "-c", SCRIPT, str(folder), size, mode, str(standstill_s)],
        capture_output=True,
        text=True,
        check=False,
    )
    answers = [line.partition(" ")[2] for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert answers, done.stderr[-3000:] + done.stdout[-3000:]
    return dict(json.loads(answers[0]))


@pytest.mark.parametrize("mode", ["cold", "warm"])
def test_a_run_whose_folder_becomes_full_succeeds_or_its_outcome_is_unknown(tmp_path: Path, mode: str) -> None:
    answer = execute_with_small_run_folder(tmp_path, mode, FILL_RUN_FOLDER, standstill_s=3)

    assert "errno" not in answer
    assert answer["status"] == "successful" or answer["killed"], answer
    assert answer["status"] != "successful" or answer["vm"]["vmid"] == 101
    assert answer["left"] == [RUN_UNTIL_FILE]


def test_a_run_that_stands_still_after_its_folder_was_full_is_ended_and_counts_as_killed(tmp_path: Path) -> None:
    answer = execute_with_small_run_folder(
        tmp_path, "cold", FILL_RUN_FOLDER + "; sleep 2; rm {folder}/run/full; sleep 90", standstill_s=1
    )

    assert (answer["status"], answer["rc"], answer["killed"]) == ("failed", 254, True)
    assert answer["left"] == [RUN_UNTIL_FILE]


@pytest.mark.parametrize("mode", ["cold", "warm"])
def test_a_run_whose_folder_is_full_can_still_be_ended_by_its_agent(tmp_path: Path, mode: str) -> None:
    answer = execute_with_small_run_folder(tmp_path, mode, FILL_RUN_FOLDER + "; touch '{folder}/end runs'; sleep 90")

    assert (answer["status"], answer["rc"], answer["killed"]) == ("failed", 253, True)
    assert answer["left"] == [RUN_UNTIL_FILE]


def test_a_run_folder_that_is_full_before_the_run_raises_an_os_error(tmp_path: Path) -> None:
    answer = execute_with_small_run_folder(tmp_path, "cold", "true", size="64k")

    assert answer["errno"] == 28  # ENOSPC
    assert answer["left"] == [RUN_UNTIL_FILE]


def test_a_run_whose_thread_cannot_start_leaves_no_open_descriptor(tmp_path: Path) -> None:
    paths = RunnerPaths(collection_folder=tmp_path, run_dir=tmp_path / "run", artifacts_dir=tmp_path / "artifacts")
    runner = Runner(paths, dict)
    runner.end_earlier_runs()
    descriptors_before = {path.name for path in Path("/proc/self/fd").iterdir()}
    playbook = tmp_path / "play.yml"
    playbook.touch()
    normal_size = threading.stack_size(1 << 46)  # no thread can get that much memory
    try:
        with pytest.raises(OSError, match="no thread can be started"):
            runner.run(PlaybookRun(ident="run-1", action="test", playbook=playbook, vm={}, timeout_s=60))
    finally:
        threading.stack_size(normal_size)
    assert {path.name for path in Path("/proc/self/fd").iterdir()} == descriptors_before
    assert [path.name for path in (tmp_path / "run").iterdir()] == [RUN_UNTIL_FILE]
