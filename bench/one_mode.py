"""Measures playbook runs in one mode: `python -m bench.one_mode INPUT OUTPUT`. The process does no other work.

There are three modes. In `plain`, ansible-runner runs the playbooks without the agent. In `cold`, the agent's runner
starts Ansible for each run. In `warm`, the agent's runner uses warm servers: processes that have loaded Ansible before
a run begins.

INPUT is a JSON file with these members:

- `mode`
- `first_vmid`: the first of the VMIDs that the process uses
- `warm_up`: 1 if one cycle that is not measured runs first, else 0
- `rounds`: the number of measured cycles; a cycle is create, start, stop and delete of one VM
- `burst`: the number of creates in the burst that follows the cycles
- `slots`: how many creates of the burst run in parallel

The variables PROXMOX_* contain the address and the credentials of Proxmox. The figures are written to the file OUTPUT.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from bench.measuring import ROOT, WorkloadFailed, sample_peak_memory, tree_cpu_s, tree_pss_mib
from executor.model import PlaybookRun
from executor.runs.actions import ansible_home
from executor.runs.runner import Runner, RunnerPaths
from executor.settings.settings import load_settings

ACTIONS = ("create", "start", "stop", "delete")
#: Time limit of one playbook run.
TIMEOUT_S = 280.0
#: How much of the end of a failed run's output is shown.
MAX_SHOWN_CHARACTERS = 2000
#: The first VMID of the burst is `first_vmid` plus this number. So there may be at most 999 measured cycles.
BURST_VMID_OFFSET = 1000
Json = dict[str, Any]


class RunPlaybook(Protocol):
    """A function that runs one of the agent's playbooks in one mode."""

    def __call__(self, action: str, vm: Json) -> None:
        """Run the playbook of an action to its end, with the extra variable `vm`. Raises WorkloadFailed."""


def main(input_file: str, output_file: str) -> None:
    """Measure the mode of the input file and write the figures to the output file."""
    inputs = json.loads(Path(input_file).read_text(encoding="utf-8"))
    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir="/dev/shm") as folder,
        _function_for_mode(inputs["mode"], Path(folder)) as run_playbook,
    ):
        first_vmid = inputs["first_vmid"]
        if inputs["warm_up"]:  # fills caches on disk before the measurement
            _measure_cycle(run_playbook, first_vmid)
        figures: Json = {"servers_mib": tree_pss_mib(os.getpid())}
        figures["actions"] = _measure_cycles(run_playbook, first_vmid + 1, inputs["rounds"])
        figures["burst"] = _measure_burst(
            run_playbook, first_vmid + BURST_VMID_OFFSET, slots=inputs["slots"], count=inputs["burst"]
        )
    Path(output_file).write_text(json.dumps(figures), encoding="utf-8")


@contextmanager
def _function_for_mode(mode: str, folder: Path) -> Iterator[RunPlaybook]:
    """Yield the function that runs a playbook in this mode."""
    if mode == "plain":
        yield _function_without_agent(folder)
        return
    with started_runner(mode, folder) as runner:

        def run_playbook(action: str, vm: Json) -> None:
            playbook = ROOT / "playbooks" / f"{action}.yml"
            ident = f"{action}-{uuid.uuid4().hex[:12]}"
            run = PlaybookRun(ident=ident, action=action, playbook=playbook, vm=vm, timeout_s=TIMEOUT_S)
            finished_run = runner.run(run)
            if finished_run.rc:
                output = (finished_run.folder / "stdout").read_text()
                raise WorkloadFailed(f"{mode} {action}: {finished_run.status}\n{output[-MAX_SHOWN_CHARACTERS:]}")

        yield run_playbook


@contextmanager
def started_runner(mode: str, folder: Path) -> Iterator[Runner]:
    """Yield the agent's runner for the mode `cold` or `warm`. In `warm`, wait until a warm server has started."""
    settings = load_settings()
    credentials = {
        "api_host": settings.proxmox_host,
        "api_port": settings.proxmox_port,
        "api_user": settings.proxmox_user,
        "api_token_id": settings.proxmox_token_id,
        "api_token_secret": settings.proxmox_token_secret.get_secret_value(),
        "validate_certs": True,
    }
    paths = RunnerPaths(ansible_home=ansible_home(), run_dir=folder / "run", artifacts_dir=folder / "artifacts")
    runner = Runner(paths, lambda: credentials, ca_bundle=settings.proxmox_ca_bundle)
    if mode == "warm":
        runner.start_warm_servers(are_required=True)
        while not runner.warm_server_pid():
            time.sleep(0.1)
    yield runner
    runner.stop_warm_servers()


def _function_without_agent(folder: Path) -> RunPlaybook:
    """Return a function that runs a playbook as the introduction of ansible-runner's documentation does it."""
    import ansible_runner  # noqa: PLC0415  not imported in the other modes, because the import takes time and memory

    environment = {name: value for name, value in os.environ.items() if name.startswith("PROXMOX_")}

    def run_playbook(action: str, vm: Json) -> None:
        private_data_dir = folder / uuid.uuid4().hex
        private_data_dir.mkdir()
        finished_run = ansible_runner.run(
            private_data_dir=str(private_data_dir),
            project_dir=str(ROOT),
            playbook=str(ROOT / "playbooks" / f"{action}.yml"),
            extravars={"vm": vm},
            envvars=environment,
            quiet=True,
        )
        if finished_run.rc:
            output = finished_run.stdout.read()
            raise WorkloadFailed(f"plain {action}: {finished_run.status}\n{output[-MAX_SHOWN_CHARACTERS:]}")

    return run_playbook


def vm_extra_var(vmid: int) -> Json:
    """Return the extra variable `vm` of a create, for a new service id."""
    service_id = str(uuid.uuid4())
    return {
        "service_id": service_id,
        "vmid": vmid,
        "name": f"bench-{service_id[:8]}",
        "node": "",
        "tags": ["bench"],
        "template_vmid": 9000,
        "cores": 2,
        "memory_mib": 2048,
        "disk_gib": 10,
        "timeout_s": int(TIMEOUT_S),
        "shutdown_timeout_s": 5,
        "address_timeout_s": 0,
    }


def _measure_cycle(run_playbook: RunPlaybook, vmid: int) -> dict[str, Json]:
    """Create, start, stop and delete one VM; return the CPU time and the wall time of each action."""
    vm = vm_extra_var(vmid)
    costs_by_action: dict[str, Json] = {}
    for action in ACTIONS:
        cpu_before_s, started = tree_cpu_s(os.getpid()), time.monotonic()
        run_playbook(action, vm)
        costs_by_action[action] = {
            "wall_s": time.monotonic() - started,
            "cpu_s": tree_cpu_s(os.getpid()) - cpu_before_s,
        }
    return costs_by_action


def _measure_cycles(run_playbook: RunPlaybook, first_vmid: int, count: int) -> dict[str, Json]:
    """Measure `count` cycles; return the mean CPU time and wall time of each action. If `count` is 0, return {}."""
    if not count:
        return {}
    cycles = [_measure_cycle(run_playbook, first_vmid + number) for number in range(count)]
    means_by_action: dict[str, Json] = {}
    for action in ACTIONS:
        costs = [cycle[action] for cycle in cycles]
        means_by_action[action] = {key: sum(cost[key] for cost in costs) / count for key in ("cpu_s", "wall_s")}
    return means_by_action


def _measure_burst(run_playbook: RunPlaybook, first_vmid: int, *, slots: int, count: int) -> Json:
    """Create `count` VMs, `slots` of them at the same time; return the wall time, the CPU time and the memory."""
    idle_mib = tree_pss_mib(os.getpid())
    cpu_before_s = tree_cpu_s(os.getpid())
    started = time.monotonic()
    with sample_peak_memory(os.getpid()) as peak, ThreadPoolExecutor(slots) as pool:
        vms = [vm_extra_var(first_vmid + number) for number in range(count)]
        creates = [pool.submit(run_playbook, "create", vm) for vm in vms]
        for future in creates:
            future.result()
    wall_s, cpu_s = time.monotonic() - started, tree_cpu_s(os.getpid()) - cpu_before_s
    return {
        "slots": slots,
        "jobs": count,
        "wall_s": wall_s,
        "cpu_s_per_job": cpu_s / count,
        "jobs_per_min": 60 * count / wall_s,
        "idle_mib": idle_mib,
        "mib_per_slot": (peak.mib - idle_mib) / slots,
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
