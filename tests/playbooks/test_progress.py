"""Progress lines of an action, in a manual run's output and in the artifacts of the agent's run; and its deadline."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from executor_bench import ExecutorBench
from play_bench import Bench

from executor.model import PlaybookRun

#: A progress line: the guest, the step, and the seconds since the action began.
PROGRESS_LINE = re.compile(r"VM (\d+) \((\S+)\): (.+) \[\d+\.\d s\]")
#: A progress line about a Proxmox task.
PROXMOX_TASK_STEP = re.compile(r"waiting for Proxmox task UPID:\S+:qmclone:9000:\S+, \d+ %(, log: .+)?")


def steps_in(output: str, vm: dict[str, Any]) -> list[str]:
    """Return the steps of the progress lines about this guest."""
    lines = [match for match in map(PROGRESS_LINE.search, output.splitlines()) if match]
    assert all(match[1] == str(vm["vmid"]) and match[2] == vm["name"] for match in lines)
    return [match[3] for match in lines]


@pytest.mark.by_hand
def test_each_step_is_a_line_of_the_output(bench: Bench) -> None:
    vm = bench.vm(disk_gib=9)
    done = bench.play("create", vm)
    steps = steps_in(done.output, vm)
    assert [step.split()[0] for step in steps] == [
        "looking",
        "cloning",
        "verifying",
        "configuring",
        "growing",
        "verifying",
    ], done.output


@pytest.mark.by_hand
def test_a_long_wait_names_the_proxmox_task_and_its_progress(bench: Bench) -> None:
    vm = bench.vm()
    bench.pve.control("time_scale", scale=1)
    done = bench.play("create", vm)
    assert done.rc == 0, done.output
    waits = [step for step in steps_in(done.output, vm) if step.startswith("waiting")]
    # On a slow machine, the first line may lack the percentage.
    assert any(map(PROXMOX_TASK_STEP.fullmatch, waits)), waits


def test_each_step_is_an_event_of_the_agents_run(bench: Bench, shared_executor: ExecutorBench) -> None:
    vm = bench.vm()
    run = PlaybookRun(ident="create-progress", action="create", playbook=PLAYBOOK, vm=vm, timeout_s=60)
    artifacts = shared_executor.runner.run(run)
    events = [json.loads(line) for line in (artifacts.folder / "events.jsonl").read_text().splitlines()]
    text = "\n".join(str(event.get("stdout", "")) for event in events if event["event"] == "verbose")
    assert [step.split()[0] for step in steps_in(text, vm)] == [
        "looking",
        "cloning",
        "verifying",
        "configuring",
        "verifying",
    ], text


PLAYBOOK = Path(__file__).resolve().parents[2] / "playbooks" / "create.yml"


def test_an_action_ends_at_its_deadline_with_the_true_cause(bench: Bench) -> None:
    vm = bench.add_vm()
    bench.pve.control("time_scale", scale=1)
    bench.pve.control("task_seconds", type="qmstart", seconds=30)
    done = bench.play("start", {**vm, "deadline_monotonic_s": time.monotonic() + 5})
    bench.pve.control("task_seconds", type="qmstart", seconds=2)
    bench.pve.control("remove", vmid=vm["vmid"])  # the Proxmox task still runs and would change the VM
    assert re.fullmatch(r"TASK_TIMEOUT: Proxmox task UPID:\S+:qmstart:\S+ has not ended in time", done.message), (
        done.output
    )


def test_an_action_fails_before_the_timeout_of_its_run_if_proxmox_does_not_answer(
    bench: Bench, shared_executor: ExecutorBench
) -> None:
    """Otherwise the runner ends the playbook, and the job's error is only that the playbook timed out."""
    vm = {**bench.add_vm(), "node": "pve1", "timeout_s": 12}
    path = f"/nodes/pve1/qemu/{vm['vmid']}/*"
    bench.pve.fail("GET", path, status=0, delay_s=60, times=-1)
    assert shared_executor.play("start", vm).code == "PVE_TIMEOUT"


def test_an_action_whose_deadline_has_passed_changes_nothing(bench: Bench) -> None:
    vm = bench.vm()
    done, changes = bench.changing_requests(
        lambda: bench.play("create", {**vm, "deadline_monotonic_s": time.monotonic() - 1})
    )
    assert (done.code, changes) == ("TASK_TIMEOUT", [])


@pytest.mark.by_hand
@pytest.mark.parametrize("content", ["api_host: [", "just a text", None])
def test_an_action_with_an_unusable_credentials_file_fails_with_pve_auth(
    bench: Bench, tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "credentials.yml"
    if content is not None:
        file.write_text(content)
    done = bench.play("start", bench.vm(), SMITH_CREDENTIALS_FILE=str(file))
    assert done.code == "PVE_AUTH"
    assert "SMITH_CREDENTIALS_FILE" in done.message


def test_check_mode_shows_values_before_and_after_in_the_same_form(bench: Bench) -> None:
    vm = {**bench.add_vm(), "cores": 4, "memory_mib": 4096, "tags": ["gold"], "disk_gib": 9}
    done = bench.play("update", vm, "--check", "--diff")
    assert done.rc == 0, done.output
    assert done.result["planned"] == {"cores": 4, "memory": 4096, "tags": ["gold", "smith", "web"], "scsi0": "9G"}
    lines = [line.replace('"', "").rstrip(",").split() for line in done.output.splitlines()]
    removed, added = ([" ".join(words[1:]) for words in lines if words[:1] == [sign]] for sign in "-+")
    assert {"cores: 2", "memory: 2048", "scsi0: 8G on local-lvm"} <= set(removed), done.output
    assert {"cores: 4", "memory: 4096", "scsi0: 9G"} <= set(added), done.output
