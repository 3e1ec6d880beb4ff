"""Runs pytest with VMIDs that are reserved in the lab, and interrupts pytest before the reservation ends.

A run of lab tests reserves a range of VMIDs. The VM that has the first VMID of the range stores the reservation: the
lease, a text in the notes of this VM.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from executor.errors import JobError
from executor.processes.process_tree import killed_with_parent_prefix
from smith_lab.lab_test.cluster import LabCluster, LabError
from smith_lab.lab_test.open_lab import CLEANUP_S, KEEP_VARIABLE, LabRun
from smith_lab.lab_test.reservation import does_vm_contain_lease
from smith_lab.lab_test.suite import suite_arguments

#: The plugin with the fixtures, for pytest's option `-p`. The entry point of the plugin must have the same name.
#: Otherwise pytest loads the plugin twice.
PLUGIN = "smith_lab.lab_test.plugin"
#: How long pytest may take to run its cleanup and write its reports after it was interrupted. Then it is killed.
INTERRUPT_TIMEOUT_S = 60
#: Seconds between two checks of the reservation while the tests run.
CHECK_INTERVAL_S = 10.0


@dataclass(frozen=True, kw_only=True)
class LabTestRequest:
    """The arguments of `smith lab-test`: which tests it runs, and how."""

    paths: Sequence[Path] = ()  #: without paths, the lab tests of Agent Smith run
    junit: Path | None = None
    html: Path | None = None
    keyword: str = ""  #: pytest's -k
    must_keep_guests: bool = False  #: --keep: the tests' guests are not removed after the tests
    time_limit_s: float = 3600.0
    wait_s: float = 0.0  #: how long to wait for VMIDs if all are reserved


class Interruption:
    """Interrupts pytest at the first Ctrl-C or TERM that this process receives, or when the caller requests it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        """Store the process of pytest."""
        self._process = process
        self.interrupted_at_s: float | None = None  #: when pytest was interrupted, by the monotonic clock

    def interrupt(self, *_arguments: object) -> None:
        """Interrupt pytest, but only once. pytest then runs the cleanup of its fixtures, and writes its reports."""
        if self.interrupted_at_s is None:
            self.interrupted_at_s = time.monotonic()
            self._process.send_signal(signal.SIGINT)

    @contextmanager
    def interrupting_on_signals(self) -> Iterator[None]:
        """Call `interrupt` for each Ctrl-C and TERM during the block."""
        previous_handlers = {
            number: signal.signal(number, self.interrupt) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in previous_handlers.items():
                signal.signal(number, handler)


@dataclass(frozen=True, kw_only=True)
class EndCondition:
    """Decides whether the tests must end: the time limit is reached, or the reservation ends soon or is lost."""

    cluster: LabCluster
    lab_run: LabRun
    deadline: float  #: by the monotonic clock, which stands still while this machine is suspended

    def reason_to_end(self) -> str:
        """Return why the tests must end; '' if they may continue."""
        if time.monotonic() >= self.deadline:
            return "the time limit is reached"
        lease, vmid = self.lab_run.reserved_range.lease, self.lab_run.reserved_range.vmids[0]
        try:
            # `now` is the time of the lab's Proxmox: all runs compare leases with this clock. The last CLEANUP_S
            # seconds of the reservation are for the removal of the guests.
            if self.cluster.now() >= lease.expires_at_s - CLEANUP_S:
                return "the reservation of the VMIDs ends soon"
            if does_vm_contain_lease(self.cluster, vmid, lease):
                return ""
            return f"VM {vmid} no longer reserves VMIDs for this run"
        except (LabError, JobError):  # Proxmox does not answer at the moment
            return ""


def run_tests(lab_run: LabRun, request: LabTestRequest) -> int:
    """Run pytest, and return its exit code.

    pytest is interrupted after Ctrl-C or TERM, at the time limit, before the reservation ends, and if this run has lost
    the reservation. In the last case, another run may use the same VMIDs.
    """
    # If this process dies, the kernel kills pytest. `lab_run.variables` contain the lab's settings and the reserved
    # VMIDs.
    process = subprocess.Popen(
        [*killed_with_parent_prefix(os.getpid()), *pytest_command(request)],
        env={**os.environ, **lab_run.variables(), **_pytest_variables(request)},
        stdin=subprocess.DEVNULL,
        process_group=0,  # Ctrl-C then reaches only this process, and this process interrupts pytest once
    )
    interruption = Interruption(process)
    end_condition = EndCondition(
        cluster=LabCluster(lab_run.settings), lab_run=lab_run, deadline=time.monotonic() + request.time_limit_s
    )
    with interruption.interrupting_on_signals():
        return _wait_for_pytest(process, interruption, end_condition)


def _pytest_variables(request: LabTestRequest) -> dict[str, str]:
    # The tests may be in the folder of a provider's actions. The executor refuses an action if other users can write a
    # file or subfolder in this folder. With some umasks, other users can write Python's bytecode files. So Python must
    # create no bytecode files.
    return {"PYTHONDONTWRITEBYTECODE": "1", **({KEEP_VARIABLE: "1"} if request.must_keep_guests else {})}


def pytest_command(request: LabTestRequest) -> list[str]:
    """Return the command line of pytest."""
    command = [sys.executable, "-m", "pytest", "-p", PLUGIN, "-p", "no:cacheprovider"]
    command += [str(path) for path in request.paths] or suite_arguments()
    if request.keyword:
        command += ["-k", request.keyword]
    if request.junit:
        command.append(f"--junitxml={request.junit.resolve()}")
    if request.html:
        command += [f"--html={request.html.resolve()}", "--self-contained-html"]
    return command


def _wait_for_pytest(process: subprocess.Popen[bytes], interruption: Interruption, end_condition: EndCondition) -> int:
    """Wait until pytest has ended; return its exit code. Interrupt pytest when the tests must end."""
    while True:
        try:
            return process.wait(CHECK_INTERVAL_S)
        except subprocess.TimeoutExpired:
            pass
        if interruption.interrupted_at_s is not None:
            if time.monotonic() - interruption.interrupted_at_s >= INTERRUPT_TIMEOUT_S:
                process.kill()
        elif reason := end_condition.reason_to_end():
            print(f"lab-test: {reason}: pytest is interrupted", file=sys.stderr, flush=True)
            interruption.interrupt()
