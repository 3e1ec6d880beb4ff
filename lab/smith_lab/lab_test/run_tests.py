"""Runs pytest in a reserved range of the lab, ends it in time, and removes what the tests have left."""

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

from executor.processes.process_tree import killed_with_parent_prefix
from smith_lab.lab_test.open_lab import KEEP_VARIABLE, LabRun
from smith_lab.lab_test.suite import suite_arguments

#: The plugin with the fixtures. Its entry point has the name of its module, so that pytest loads it once.
PLUGIN = "smith_lab.lab_test.plugin"
#: How long pytest may take to write its reports after it was interrupted.
INTERRUPT_TIMEOUT_S = 60


@dataclass(frozen=True, kw_only=True)
class LabTestRequest:
    """What the caller wants to be tested."""

    paths: Sequence[Path] = ()  #: without paths, the suite of Agent Smith runs
    junit: Path | None = None
    html: Path | None = None
    keyword: str = ""  #: pytest's -k
    keep: bool = False
    time_limit_s: float = 3600.0


def run_tests(run: LabRun, request: LabTestRequest) -> int:
    """Run pytest, and return its exit code. At the time limit, and after TERM, pytest is interrupted."""
    process = subprocess.Popen(
        [*killed_with_parent_prefix(os.getpid()), *pytest_command(request)],
        env={**os.environ, **run.variables(), **({KEEP_VARIABLE: "1"} if request.keep else {})},
        stdin=subprocess.DEVNULL,
    )
    with _terminated_by(process):
        return _wait(process, time.monotonic() + request.time_limit_s)


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


def _wait(process: subprocess.Popen[bytes], deadline: float) -> int:
    """Wait until pytest has ended. Ctrl-C reaches pytest, too, which then ends by itself."""
    while True:
        try:
            return process.wait(max(0.0, deadline - time.monotonic()))
        except KeyboardInterrupt:
            deadline = time.monotonic() + INTERRUPT_TIMEOUT_S
        except subprocess.TimeoutExpired:
            break
    print("lab-test: the time limit is reached: pytest is interrupted", file=sys.stderr)
    process.send_signal(signal.SIGINT)
    try:
        return process.wait(INTERRUPT_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


@contextmanager
def _terminated_by(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Interrupt pytest when this process receives TERM."""
    before = signal.signal(signal.SIGTERM, lambda *_: process.send_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
