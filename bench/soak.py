"""Does thousands of warm runs, to find resources that accumulate, such as memory, files and processes.

This workload takes half an hour, and is run only with `--only soak`. A warm run uses a warm server: a process that has
loaded Ansible before the run begins. A fifth of the runs start or stop a VM. In all other runs the service id is
invalid, so the playbook fails early. These runs are shorter, but need the same kinds of resources. The artifacts of a
run are removed when the run has ended.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
from smith_lab.proxmox.stand_in import ProxmoxStandIn

from bench.measuring import ROOT, WorkloadFailed, run_in_own_process, tree_pss_mib
from bench.one_mode import MAX_SHOWN_CHARACTERS, started_runner, vm_extra_var
from executor.model import PlaybookRun
from executor.processes import process_tree
from executor.runs.runner import Runner

Json = dict[str, Any]
#: How many runs are done in parallel. Each slot is a thread with its own VM.
SLOTS = 8
#: Time limit of one playbook run.
TIMEOUT_S = 120.0
#: The runs of one cycle of a slot. A `refused` run has an invalid service id. After a cycle, the VM is stopped again.
CYCLE = ("start", "refused", "refused", "refused", "refused", "stop", "refused", "refused", "refused", "refused")
FIRST_VMID = 400_000
#: Approximate number of samples of the resources in use.
SAMPLES = 20


def measure(stand_in: ProxmoxStandIn, folder: Path, runs: int) -> Json:
    """Add the VMs to Proxmox and do `runs` runs; return samples of memory, files and processes.

    Raises WorkloadFailed if a run ends in an unexpected way.
    """
    for number in range(SLOTS):
        stand_in.control("add", vmid=FIRST_VMID + number, name=f"soak-{number}", config=_vm_config(number))
    return run_in_own_process("bench.soak", {"runs": runs}, folder, stand_in.env())


def _vm_config(number: int) -> Json:
    return {"description": f"smith-uid={_service_id(number)}", "tags": "smith", "cores": 1, "memory": "512"}


def _service_id(number: int) -> str:
    return str(uuid.UUID(int=number + 1))


# --- in a process of its own ------------------------------------------------------------------------------------------


def main(input_file: str, output_file: str) -> None:
    """Do the number of runs in the input file, and write the samples to the output file."""
    runs = json.loads(Path(input_file).read_text(encoding="utf-8"))["runs"]
    temporary_files_before = _temporary_files()
    samples: list[Json] = []
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir="/dev/shm") as folder,
        started_runner("warm", Path(folder)) as runner,
    ):
        server_before = runner.warm_server_pid()
        runs_per_slot = max(runs // SAMPLES // SLOTS, 1)  # between two samples
        runs_done = 0
        while runs_done < runs:
            with ThreadPoolExecutor(SLOTS) as pool:
                list(pool.map(lambda slot: _run_in_slot(runner, slot, runs_per_slot), range(SLOTS)))
            runs_done += runs_per_slot * SLOTS
            samples.append({"runs_done": runs_done, **_sample(Path(folder))})
        server_after = runner.warm_server_pid()
    figures = {
        "runs": runs_done,
        "took_s": time.monotonic() - started,
        "samples": samples,
        "servers": [int(pid is not None) for pid in (server_before, server_after)],
        "temporary_files_left": len(_temporary_files() - temporary_files_before),
    }
    Path(output_file).write_text(json.dumps(figures), encoding="utf-8")


def _run_in_slot(runner: Runner, slot: int, count: int) -> None:
    """Do `count` runs: the runs of CYCLE in their order, repeated as often as necessary. All slots share the runner."""
    for number in range(count):
        _run_playbook(runner, slot, CYCLE[number % len(CYCLE)])


def _run_playbook(runner: Runner, slot: int, cycle_entry: str) -> None:
    """Do one run and remove its artifacts. Raises WorkloadFailed if the run does not end as expected."""
    is_refused = cycle_entry == "refused"
    action = "start" if is_refused else cycle_entry
    service_id = "none" if is_refused else _service_id(slot)
    vm = vm_extra_var(FIRST_VMID + slot) | {"service_id": service_id, "name": f"soak-{slot}"}
    ident = f"{action}-{uuid.uuid4().hex[:12]}"
    playbook = ROOT / "playbooks" / f"{action}.yml"
    run = PlaybookRun(ident=ident, action=action, playbook=playbook, vm=vm, timeout_s=TIMEOUT_S)
    finished_run = runner.run(run)
    output = (finished_run.folder / "stdout").read_text()
    has_failed = bool(finished_run.rc)
    has_refusal_text = "INVALID_REQUEST: service_id is not a UUID" in output
    # A refused run must fail with the text of the refusal. Any other run must succeed.
    if has_failed != is_refused or has_refusal_text != is_refused:
        raise WorkloadFailed(f"{cycle_entry}: {finished_run.status}\n{output[-MAX_SHOWN_CHARACTERS:]}")
    shutil.rmtree(finished_run.folder)


def _sample(folder: Path) -> Json:
    """Return the resources in use. The caller makes sure that no playbook runs."""
    time.sleep(2)  # after this time, the processes of the last runs have ended
    pids = process_tree.descendants(os.getpid())
    return {
        "processes": len(pids),
        "descriptors": sum(_descriptor_count(pid) for pid in {os.getpid(), *pids}),
        "threads": psutil.Process().num_threads(),
        "own_mib": psutil.Process().memory_info().rss / 1024 / 1024,
        "servers_mib": tree_pss_mib(os.getpid()),
        "files": sum(1 for _ in folder.rglob("*")),
    }


def _descriptor_count(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:  # the process has ended
        return 0


def _temporary_files() -> set[str]:
    return {str(path) for folder in ("/tmp", "/dev/shm") for path in Path(folder).iterdir()}  # noqa: S108


if __name__ == "__main__":
    main(*sys.argv[1:])
