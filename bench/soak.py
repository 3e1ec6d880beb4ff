"""Does thousands of warm runs, to find resources that accumulate, such as memory, files and processes.

This workload takes half an hour, and is run only with `--only soak`. A warm run uses a process that has loaded Ansible
before the run begins. A fifth of the runs start and stop a few VMs. In all other runs the service id is invalid, so the
playbook fails early; such a run is shorter but goes through all steps of a run. Artifacts are removed after each run.
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

from bench.measuring import ROOT, WorkloadFailed, in_own_process, tree_pss_mib
from bench.one_mode import runner_of, vm_of
from executor.model import PlaybookRun
from executor.processes import process_tree
from executor.runs.runner import Runner

Json = dict[str, Any]
#: How many runs are done in parallel. Each slot has its own VM.
SLOTS = 8
#: Time limit of one playbook run.
TIMEOUT_S = 120.0
#: The runs of one cycle of a slot; a `refused` run has an invalid service id. The VM's state is the same after a cycle.
CYCLE = ("start", "refused", "refused", "refused", "refused", "stop", "refused", "refused", "refused", "refused")
FIRST_VMID = 400_000
#: About how many samples of the resources are taken.
SAMPLES = 20


def measure(stand_in: ProxmoxStandIn, folder: Path, runs: int) -> Json:
    """Add the VMs to Proxmox and do `runs` runs; return samples of memory, files and processes.

    Raises WorkloadFailed if a run ends in an unexpected way.
    """
    for number in range(SLOTS):
        stand_in.control("add", vmid=FIRST_VMID + number, name=f"soak-{number}", config=_config(number))
    return in_own_process("bench.soak", {"runs": runs}, folder, stand_in.env())


def _config(number: int) -> Json:
    return {"description": f"smith-uid={_service_id(number)}", "tags": "smith", "cores": 1, "memory": "512"}


def _service_id(number: int) -> str:
    return str(uuid.UUID(int=number + 1))


# --- in a process of its own ------------------------------------------------------------------------------------------


def main(input_file: str, output_file: str) -> None:
    """Do the number of runs in the input file, and write the samples to the output file."""
    runs = json.loads(Path(input_file).read_text(encoding="utf-8"))["runs"]
    temp_before, samples, started = _temporary_files(), [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/dev/shm") as name, runner_of("warm", Path(name)) as runner:
        servers = len(runner.warm_pids())
        runs_per_slot = max(runs // SAMPLES // SLOTS, 1)
        done = 0
        while done < runs:
            with ThreadPoolExecutor(SLOTS) as pool:
                list(pool.map(lambda slot: _run_slot(runner, slot, runs_per_slot), range(SLOTS)))
            done += runs_per_slot * SLOTS
            samples.append({"runs_done": done, **_sample(Path(name))})
        servers_after = len(runner.warm_pids())
    facts = {
        "runs": done,
        "took_s": time.monotonic() - started,
        "samples": samples,
        "servers": [servers, servers_after],
        "temporary_files_left": len(_temporary_files() - temp_before),
    }
    Path(output_file).write_text(json.dumps(facts), encoding="utf-8")


# One warm runner serves all slots; each slot is a thread.
def _run_slot(runner: Runner, slot: int, times: int) -> None:
    for number in range(times):
        _run(runner, slot, CYCLE[number % len(CYCLE)])


def _run(runner: Runner, slot: int, kind: str) -> None:
    action, is_refused = ("start" if kind == "refused" else kind), kind == "refused"
    service_id = "none" if is_refused else _service_id(slot)
    vm = vm_of(FIRST_VMID + slot) | {"service_id": service_id, "name": f"soak-{slot}"}
    ident = f"{action}-{uuid.uuid4().hex[:12]}"
    playbook = ROOT / "playbooks" / f"{action}.yml"
    done = runner.run(PlaybookRun(ident=ident, action=action, playbook=playbook, vm=vm, timeout_s=TIMEOUT_S))
    output = (done.folder / "stdout").read_text()
    if bool(done.rc) != is_refused or is_refused != ("INVALID_REQUEST: service_id is not a UUID" in output):
        raise WorkloadFailed(f"{kind}: {done.status}\n{output[-2000:]}")
    shutil.rmtree(done.folder)


def _sample(folder: Path) -> Json:
    """Return the resources that are in use at a time when no playbook runs."""
    time.sleep(2)
    pids = process_tree.descendants(os.getpid())
    return {
        "processes": len(pids),
        "descriptors": sum(_descriptors(pid) for pid in {os.getpid(), *pids}),
        "threads": psutil.Process().num_threads(),
        "own_mib": psutil.Process().memory_info().rss / 1024 / 1024,
        "servers_mib": tree_pss_mib(os.getpid()),
        "files": sum(1 for _ in folder.rglob("*")),
    }


def _descriptors(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def _temporary_files() -> set[str]:
    return {str(path) for folder in ("/tmp", "/dev/shm") for path in Path(folder).iterdir()}  # noqa: S108


if __name__ == "__main__":
    main(*sys.argv[1:])
