"""Starts for each variant a process that runs playbooks, sends batches of runs to it, and measures these batches.

A variant is an installation that the bench compares with others (bench/baseline.py).
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from smith_lab.proxmox.stand_in import ProxmoxStandIn

from bench.baseline import Variant, inherited_environment
from bench.measuring import MeasurementFailed, tree_cpu_s

Json = dict[str, Any]
SCRIPT = Path(__file__).with_name("playbook_process.py")
#: The wait after each batch. During the wait, the processes of the batch's last runs end. The CPU time of the batch
#: includes the wait, but its wall time does not.
WAIT_AFTER_BATCH_S = 0.3
STOP_TIMEOUT_S = 60.0
#: How many characters at the end of a failed process's error output are shown.
MAX_SHOWN_CHARACTERS = 3000
_unused_vmids = itertools.count(200_000)


@dataclass(frozen=True, kw_only=True)
class BatchCosts:
    """The time that a batch of runs took: wall time and CPU time.

    A warm server is a process that has imported Ansible, and forks a process for each run.
    """

    wall_s: float
    cpu_s: float  #: of playbook_process.py and its descendants (Ansible, warm servers), without the stand-in
    stand_in_cpu_s: float
    spans: list[tuple[float, float]]  #: start and end of each run, in seconds since the start of the batch


class PlaybookProcess:
    """A process of playbook_process.py, which runs playbooks with one variant. All variants use the same stand-in.

    `variant.root` is the variant's checkout, and `variant.python` the interpreter for which it is installed. The
    process keeps its files in `folder`, which is on tmpfs, and writes its error output to a file in `log_folder`.
    """

    def __init__(self, variant: Variant, stand_in: ProxmoxStandIn, log_folder: Path) -> None:
        self.variant = variant
        self.stand_in = stand_in
        self.folder = Path(tempfile.mkdtemp(prefix=f"bench-{variant.name}-", dir="/dev/shm"))
        self._log = log_folder / f"{variant.name}.log"
        # `inherited_environment()` is this process's environment; settings of Agent Smith and Ansible are left out.
        # `stand_in.env()` contains the address and token of the stand-in.
        environment = inherited_environment() | stand_in.env()
        # The variant `plain`, which is ansible-runner without the executor, finds ansible-playbook by PATH.
        environment["PATH"] = f"{variant.python.parent}{os.pathsep}{environment['PATH']}"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(variant.python), "-P", str(SCRIPT), variant.name, str(variant.root), str(self.folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=variant.root,
                env=environment,
                text=True,
            )
        self._requests, self._answers = cast("IO[str]", self._process.stdin), cast("IO[str]", self._process.stdout)
        self._read_line()  # returns when the process is ready

    @property
    def pid(self) -> int:
        """The process id. The playbook runs and the warm servers are descendants of the process."""
        return self._process.pid

    def run(self, action: str, vm: Json) -> BatchCosts:
        """Run one playbook. Raises MeasurementFailed if the run fails."""
        return self.run_batch([{"action": action, "vm": vm}], slots=1)

    def run_batch(self, runs: Sequence[Json], *, slots: int) -> BatchCosts:
        """Run playbooks, `slots` of them in parallel. Raises MeasurementFailed if a run does not end as expected.

        A run is expected to succeed. A run with the member `expected_error` is expected to fail with this text in its
        output.
        """
        cpu_before_s, stand_in_cpu_before_s = tree_cpu_s(self.pid), self._stand_in_cpu_s()
        started_at_s = time.monotonic()
        self._requests.write(json.dumps({"slots": slots, "runs": list(runs)}) + "\n")
        self._requests.flush()
        answer = json.loads(self._read_line())
        wall_s = time.monotonic() - started_at_s
        if "error" in answer:
            raise MeasurementFailed(f"{self.variant.name}: {answer['error']}")
        time.sleep(WAIT_AFTER_BATCH_S)
        return BatchCosts(
            wall_s=wall_s,
            cpu_s=tree_cpu_s(self.pid) - cpu_before_s,
            stand_in_cpu_s=self._stand_in_cpu_s() - stand_in_cpu_before_s,
            spans=[(start, end) for start, end in answer["spans"]],
        )

    def _stand_in_cpu_s(self) -> float:
        """Return the CPU time of the stand-in; 0 if it does not run."""
        return tree_cpu_s(self.stand_in.pid or 0)  # no process has the id 0

    def _read_line(self) -> str:
        line = self._answers.readline()
        if not line:
            error_output = self._log.read_text(errors="replace")[-MAX_SHOWN_CHARACTERS:]
            raise MeasurementFailed(f"{self.variant.name}: the process has ended:\n{error_output}")
        return line

    def close(self) -> None:
        """End the process, and remove its folder."""
        self._requests.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def running_playbook_process(variant: Variant, stand_in: ProxmoxStandIn, log_folder: Path) -> Iterator[PlaybookProcess]:
    """Start a process that runs playbooks for the `with` block, and end the process after the block."""
    process = PlaybookProcess(variant, stand_in, log_folder)
    try:
        yield process
    finally:
        process.close()


def new_vm() -> Json:
    """Return the variable `vm` for the playbook create.yml, with a new service id and a VMID that no run has used."""
    service_id = str(uuid.uuid4())
    return {
        "service_id": service_id,
        "vmid": next(_unused_vmids),
        "name": f"bench-{service_id[:8]}",
        "node": "",  # the clone is on the node of its template
        "tags": ["bench"],
        "template_vmid": 9000,  # a template of the stand-in
        "cores": 2,
        "memory_mib": 2048,
        "disk_gib": 10,
        "timeout_s": 280,  # the run fails after this time
        "shutdown_timeout_s": 5,
        "address_timeout_s": 0,  # a start does not wait for the guest's IP address
    }


def create_vms_in_parallel(process: PlaybookProcess, create_count: int, slots: int) -> BatchCosts:
    """Create VMs, `slots` of them in parallel. Then remove them, so that the stand-in's list of VMs stays short."""
    vms = [new_vm() for _ in range(create_count)]
    costs = process.run_batch([{"action": "create", "vm": vm} for vm in vms], slots=slots)
    for vm in vms:
        process.stand_in.control("remove", vmid=vm["vmid"])
    return costs


def create_vms_for_warm_up(processes: Sequence[PlaybookProcess], rounds: int) -> None:
    """Create one VM in each round with each process, without a measurement. These first runs fill caches."""
    for _ in range(rounds):
        for process in processes:
            create_vms_in_parallel(process, 1, 1)


def set_clone_duration(stand_in: ProxmoxStandIn, clone_s: float) -> None:
    """Set the duration of a clone in the stand-in.

    If it is 0, no Proxmox task takes time. If it is greater than 0, every Proxmox task that is not a clone takes the
    stand-in's default duration.
    """
    stand_in.control("time_scale", scale=1.0 if clone_s else 0.0)
    stand_in.control("task_seconds", type="qmclone", seconds=clone_s)
