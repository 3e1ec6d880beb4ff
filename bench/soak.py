"""Does thousands of warm runs to find resources that accumulate, such as memory and files.

A warm server is a process that has imported Ansible. A warm run is done in a process that the warm server forks.

This part of the bench takes half an hour, and is run only with `--only soak`. The runs are done in cycles. A cycle
starts each VM, and later stops each VM. After the starts, and again after the stops, it does runs with an invalid
service id, so that the playbook fails early. These runs are shorter, but need the same kinds of resources. The
artifacts of a run are removed when the run has ended.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import psutil
from smith_lab.proxmox.stand_in import ProxmoxStandIn

from bench.baseline import CURRENT
from bench.part import Bench, Part, Table
from bench.playbooks import PlaybookProcess, new_vm, set_clone_duration
from executor.processes import process_tree
from executor.processes.memory import process_tree_memory_mib

Json = dict[str, Any]
#: How many runs are done in parallel, and how many VMs there are.
SLOTS = 8
#: The text in the output of a refused run, which has an invalid service id.
REFUSAL = "INVALID_REQUEST: service_id is not a UUID"
#: In a cycle, the number of runs with an invalid service id for each VM and action.
REFUSED_RUNS_PER_ACTION = 4
#: The number of runs in a cycle: a start and a stop of each VM, and the refused runs.
RUNS_PER_CYCLE = 2 * SLOTS * (1 + REFUSED_RUNS_PER_ACTION)
#: The approximate number of samples of the resources in use.
SAMPLE_COUNT = 20


def measure(bench: Bench) -> Json:
    """Do the runs; return samples of memory, files and processes. Raises MeasurementFailed."""
    # A variant is an installation that the bench compares with others. Each variant has one process, which starts all
    # playbook runs with this variant. CURRENT is the variant with this checkout's executor.
    (process,) = [process for process in bench.playbook_processes() if process.variant.name == CURRENT]
    set_clone_duration(process.stand_in, 0)  # with 0, all Proxmox tasks take no time, not only clones
    vms = [_add_vm(process.stand_in) for _ in range(SLOTS)]
    temporary_files_before = _temporary_files()
    samples: list[Json] = []
    runs_done = 0
    while runs_done < bench.sizes.soak_runs:
        for _ in range(max(bench.sizes.soak_runs // SAMPLE_COUNT // RUNS_PER_CYCLE, 1)):
            for action in ("start", "stop"):
                process.run_batch(_runs_of(vms, action), slots=SLOTS)
            runs_done += RUNS_PER_CYCLE
        samples.append({"runs_done": runs_done, **_resources_in_use(process)})
    return {"samples": samples, "temporary_files_left": len(_temporary_files() - temporary_files_before)}


def _add_vm(stand_in: ProxmoxStandIn) -> Json:
    """Add a stopped VM to the stand-in; return the variable `vm` for its runs."""
    vm = new_vm()
    config = {"description": f"smith-uid={vm['service_id']}", "tags": "smith", "cores": 1, "memory": "512"}
    stand_in.control("add", vmid=vm["vmid"], name=vm["name"], config=config)
    return vm


def _runs_of(vms: list[Json], action: str) -> list[Json]:
    """Return a batch: a run of the action for each VM, and then the refused runs."""
    refused_runs = [{"action": action, "vm": vm | {"service_id": "none"}, "expected_error": REFUSAL} for vm in vms]
    return [{"action": action, "vm": vm} for vm in vms] + refused_runs * REFUSED_RUNS_PER_ACTION


def _resources_in_use(process: PlaybookProcess) -> Json:
    """Return the resources in use. The caller makes sure that no playbook runs.

    `process` runs playbook_process.py. `own_mib` and `threads` are the memory and the threads of `process`.
    `servers_mib` is the memory of its descendants: the warm server and the server's processes. `files` is the number of
    files and folders in the folder in which `process` keeps its files.
    """
    time.sleep(2)  # after this time, the processes of the last runs have ended
    pids = process_tree.descendants(process.pid)
    return {
        "processes": len(pids),
        "descriptors": sum(_descriptor_count(pid) for pid in {process.pid, *pids}),
        "threads": psutil.Process(process.pid).num_threads(),
        "own_mib": psutil.Process(process.pid).memory_info().rss / 1024 / 1024,
        "servers_mib": process_tree_memory_mib(process.pid, include_root_process=False),
        "files": sum(1 for _ in process.folder.rglob("*")),
    }


def _descriptor_count(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:  # the process has ended
        return 0


def _temporary_files() -> set[str]:
    return {str(path) for folder in ("/tmp", "/dev/shm") for path in Path(folder).iterdir()}  # noqa: S108


def _tables(figures: Json) -> list[Table]:
    names = ("runs_done", "processes", "descriptors", "threads", "own_mib", "servers_mib", "files")
    rows = [tuple(f"{sample[name]:.0f}" for name in names) for sample in figures["samples"]]
    title = (
        f"Resources after many warm runs; new files and folders in /tmp and /dev/shm: {figures['temporary_files_left']}"
    )
    return [Table(title=title, headings=names, rows=rows)]


#: A part is one benchmark of the bench. `bench/__main__.py` runs this one.
PART = Part(help="resources after ten thousand warm runs", measure=measure, tables=_tables)
