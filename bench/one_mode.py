"""Measures playbook runs in one mode: `python -m bench.one_mode INPUT OUTPUT`. The process does no other work.

There are three modes. In `plain`, ansible-runner runs the playbooks without the agent. In `cold`, the agent's runner
starts Ansible for each run. In `warm`, the agent's runner uses warm servers: processes that have loaded Ansible before
a run begins.

INPUT is a JSON file with `mode`; `first_vmid` (the VMIDs from this number on are used); `warm_up` (1 if one cycle that
is not measured runs first); `rounds` (number of cycles of create, start, stop, delete); `burst` (number of creates in
the burst that follows); and `slots` (how many of these creates run in parallel). The variables PROXMOX_* contain the
address and the credentials of Proxmox. The figures are written to the file OUTPUT.
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
        _playbook_runner(inputs["mode"], Path(folder)) as run,
    ):
        if inputs["warm_up"]:  # fills caches on disk before the measurement
            _cycle(run, inputs["first_vmid"])
        facts: Json = {"servers_mib": tree_pss_mib(os.getpid())}
        facts["actions"] = _cycles(run, inputs["first_vmid"] + 1, inputs["rounds"])
        facts["burst"] = _burst(run, inputs["first_vmid"] + 1000, inputs["slots"], inputs["burst"])
    Path(output_file).write_text(json.dumps(facts), encoding="utf-8")


@contextmanager
def _playbook_runner(mode: str, folder: Path) -> Iterator[RunPlaybook]:
    if mode == "plain":
        yield _plain(folder)
        return
    with runner_of(mode, folder) as runner:

        def run(action: str, vm: Json) -> None:
            playbook = ROOT / "playbooks" / f"{action}.yml"
            ident = f"{action}-{uuid.uuid4().hex[:12]}"
            done = runner.run(PlaybookRun(ident=ident, action=action, playbook=playbook, vm=vm, timeout_s=TIMEOUT_S))
            if done.rc:
                raise WorkloadFailed(f"{mode} {action}: {done.status}\n{(done.folder / 'stdout').read_text()[-2000:]}")

        yield run


@contextmanager
def runner_of(mode: str, folder: Path) -> Iterator[Runner]:
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
        runner.start_warm(required=True)
        while not runner.warm_pids():
            time.sleep(0.1)
    yield runner
    runner.stop_warm()


def _plain(folder: Path) -> RunPlaybook:
    """Return the baseline: a function that calls ansible-runner as the introduction of its documentation does."""
    import ansible_runner  # noqa: PLC0415  imported here, so that the other modes do not have the cost of this import

    environment = {name: value for name, value in os.environ.items() if name.startswith("PROXMOX_")}

    def run(action: str, vm: Json) -> None:
        private = folder / uuid.uuid4().hex
        private.mkdir()
        done = ansible_runner.run(
            private_data_dir=str(private),
            project_dir=str(ROOT),
            playbook=str(ROOT / "playbooks" / f"{action}.yml"),
            extravars={"vm": vm},
            envvars=environment,
            quiet=True,
        )
        if done.rc:
            raise WorkloadFailed(f"plain {action}: {done.status}\n{done.stdout.read()[-2000:]}")

    return run


def vm_of(vmid: int) -> Json:
    """Return the extra variable `vm` of a create, for a new service id."""
    service_id = str(uuid.uuid4())
    return {
        **{"service_id": service_id, "vmid": vmid, "name": f"bench-{service_id[:8]}", "node": "", "tags": ["bench"]},
        **{"template_vmid": 9000, "cores": 2, "memory_mib": 2048, "disk_gib": 10, "timeout_s": int(TIMEOUT_S)},
        **{"shutdown_timeout_s": 5, "address_timeout_s": 0},
    }


def _cycle(run: RunPlaybook, vmid: int) -> dict[str, Json]:
    """Create, start, stop and delete one VM; return the CPU time and the wall time of each action."""
    vm, spent = vm_of(vmid), {}
    for action in ACTIONS:
        cpu_before_s, started = tree_cpu_s(os.getpid()), time.monotonic()
        run(action, vm)
        spent[action] = {"wall_s": time.monotonic() - started, "cpu_s": tree_cpu_s(os.getpid()) - cpu_before_s}
    return spent


def _cycles(run: RunPlaybook, vmid: int, rounds: int) -> dict[str, Json]:
    cycles = [_cycle(run, vmid + number) for number in range(rounds)]
    return {
        action: {key: sum(cycle[action][key] for cycle in cycles) / rounds for key in ("cpu_s", "wall_s")}
        for action in ACTIONS
        if rounds
    }


def _burst(run: RunPlaybook, vmid: int, slots: int, count: int) -> Json:
    """Create `count` VMs, of which `slots` are created in parallel; return the wall time, CPU time and memory."""
    idle_mib, cpu_before_s, started = tree_pss_mib(os.getpid()), tree_cpu_s(os.getpid()), time.monotonic()
    with sample_peak_memory(os.getpid()) as peak, ThreadPoolExecutor(slots) as pool:
        creates = [pool.submit(run, "create", vm_of(vmid + number)) for number in range(count)]
        for future in creates:
            future.result()
    wall_s, cpu_s = time.monotonic() - started, tree_cpu_s(os.getpid()) - cpu_before_s
    return {
        **{"slots": slots, "jobs": count, "wall_s": wall_s, "cpu_s_per_job": cpu_s / count},
        **{"jobs_per_min": 60 * count / wall_s, "idle_mib": idle_mib, "mib_per_slot": (peak.mib - idle_mib) / slots},
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
