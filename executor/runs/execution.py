"""One run of ansible-runner between its start and its end: its processes, its output, its events, its time limit.

A run's root process is a guard (`process_tree.guard`; of a warm run `warm/client.py`). Its standard input is a pipe
from the agent: when we close the pipe, or the agent dies, the guard ends the whole process tree.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import ansible_runner
from ansible_runner.utils import OutputEventFilter

from executor.log import get_logger
from executor.model import RunStatus
from executor.processes import process_tree
from executor.runs.output import OutputReader, RunOutput
from executor.runs.private_folder import CREDENTIALS_VARIABLE

log = get_logger(__name__)

#: How often `cancelled` and the deadline are checked during a run.
STEP_S = 0.2
#: Extra time for the guard, after its own grace period, before we kill the run's processes ourselves.
GUARD_MARGIN_S = 2.0
#: A larger event file is not parsed.
MAX_EVENT_FILE_BYTES = 4 * 1024 * 1024
READ_BYTES = 16 * 1024

_UUID = re.compile(r"[0-9A-Za-z-]{1,64}\Z")

Pipe = tuple[BinaryIO, BinaryIO]  # reader, writer


@contextlib.contextmanager
def prepared(config: Any, output: RunOutput) -> Iterator[Execution]:
    """Prepare a run. It may be cancelled before it starts; its pipes are closed at the end, however it ends."""
    with _pipe() as guard_input, _pipe() as run_output:
        yield Execution(config, output, guard_input, run_output)


class Execution:
    """One run between its start and its end."""

    def __init__(self, config: Any, output: RunOutput, guard_input: Pipe, run_output: Pipe) -> None:
        self._config = config
        self._output = output
        self._guard_input, self._guard_pipe = guard_input
        self._run_output, self._output_writer = run_output
        self._events_folder = Path(config.artifact_dir, "job_events")
        self._credentials_file = config.env[CREDENTIALS_VARIABLE]
        self._runner = ansible_runner.Runner(config, event_handler=self._add_event)
        self._filter = OutputEventFilter(output, self._on_event, suppress_ansible_output=True)
        self._reader = OutputReader(self._filter.write, output.seal)
        self._lock = threading.Lock()
        self._reason: RunStatus | None = None
        self._cancelled_at = 0.0

    def execute(self, deadline: float, cancelled: Callable[[], bool]) -> tuple[RunStatus, int]:
        """Run to the end and end all processes; return status and exit code. `deadline` is monotonic time."""
        # ansible-runner gives these to the process in the mode that `runner_config` chose, and waits for its end.
        self._config.input_fd = self._guard_input
        self._config.output_fd = self._config.error_fd = self._output_writer
        thread = threading.Thread(target=self._run, name=f"run-{self._config.ident}", daemon=True)
        thread.start()
        try:
            self._follow(thread, deadline, cancelled)
        finally:
            self._end(thread)
            self._drain()
        status, rc = self._outcome()
        self._output.finish(status=status, rc=rc)
        return status, rc

    def cancel(self, reason: RunStatus = RunStatus.CANCELED) -> None:
        """Ask the guard to end the run. Only the first reason counts; without effect once the run has ended."""
        with self._lock:
            if self._reason is None and not self._guard_pipe.closed:
                self._reason, self._cancelled_at = reason, time.monotonic()
        self._close_guard_pipe()

    def _close_guard_pipe(self) -> None:
        with self._lock:
            self._guard_pipe.close()

    def _run(self) -> None:
        try:
            self._runner.run()
        except OSError as error:  # no space for a file, or no process could be started: the run has failed
            log.error("run_crashed", run_ident=self._config.ident, reason=str(error))
        finally:
            self._output_writer.close()
            self._guard_input.close()

    def _follow(self, thread: threading.Thread, deadline: float, cancelled: Callable[[], bool]) -> None:
        """Read the run's output until its guard has ended."""
        poll, check_at = _poll(self._run_output), 0.0
        while thread.is_alive():
            if poll.poll(STEP_S * 1000) and not self._read():
                thread.join(STEP_S)  # the output ends a moment before the process
            now = time.monotonic()
            if now < check_at:
                continue
            check_at = now + STEP_S
            self._check_limits(now, deadline, cancelled)

    def _check_limits(self, now: float, deadline: float, cancelled: Callable[[], bool]) -> None:
        if self._reason is not None:
            if now > self._cancelled_at + process_tree.GRACE_S + GUARD_MARGIN_S:
                process_tree.end_processes(self._processes, grace_s=0)  # the guard is suspended or dead
        elif cancelled():
            self.cancel()
        elif now >= deadline:
            self.cancel(RunStatus.TIMEOUT)

    def _end(self, thread: threading.Thread) -> None:
        """End all processes of the run, even if the guard was killed."""
        self._close_guard_pipe()
        thread.join(process_tree.GRACE_S + GUARD_MARGIN_S)
        if orphans := process_tree.end_processes(
            self._processes, grace_s=0 if thread.is_alive() else process_tree.GRACE_S
        ):
            log.warning("orphan_processes_killed", run_ident=self._config.ident, processes=len(orphans))
        thread.join()

    def _drain(self) -> None:
        poll = _poll(self._run_output)
        while poll.poll(0) and self._read():
            pass
        self._filter.close()

    def _read(self) -> bool:
        """Read a part of the output; False at its end."""
        data = os.read(self._run_output.fileno(), READ_BYTES)
        self._reader.feed(data)
        return bool(data)

    def _processes(self) -> set[int]:
        return process_tree.processes_with_variable(CREDENTIALS_VARIABLE, f"{self._credentials_file}\0")

    def _outcome(self) -> tuple[RunStatus, int]:
        rc = process_tree.ENDED if self._runner.rc is None else int(self._runner.rc)
        if rc == 0:  # it ended well before the cancellation took effect
            return RunStatus.SUCCESSFUL, 0
        if self._reason is not None:  # whether the guard ended it or we had to
            return self._reason, process_tree.ENDED
        return RunStatus.FAILED, rc if rc > 0 else 128 - rc

    def _on_event(self, event: dict[str, Any]) -> None:
        """Make ansible-runner complete an event of the output from the file that its callback has written.

        The output may contain text from outside. So only the file defines an event, and a file that is
        truncated, too large or not JSON must not stop the run.
        """
        if not _UUID.match(str(event.get("uuid", ""))):
            return
        file = self._events_folder / f"{event['uuid']}-partial.json"
        event = {key: event[key] for key in ("uuid", "counter", "stdout", "start_line", "end_line") if key in event}
        event |= {"event": "verbose"}
        try:
            if file.exists() and file.stat().st_size > MAX_EVENT_FILE_BYTES:
                raise ValueError("too large")
            self._runner.event_callback(event)
        except (ValueError, TypeError, OSError, RecursionError) as error:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
            self._add_event(event | {"smith_unreadable": type(error).__name__})

    def _add_event(self, event: dict[str, Any]) -> bool:
        """Store one event; False keeps ansible-runner from writing its own copy."""
        self._output.add_event(event)
        return False


@contextlib.contextmanager
def _pipe() -> Iterator[Pipe]:
    reader_fd, writer_fd = os.pipe2(os.O_CLOEXEC)
    with open(reader_fd, "rb", buffering=0) as reader, open(writer_fd, "wb", buffering=0) as writer:
        yield reader, writer


def _poll(file: BinaryIO) -> select.poll:
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return poll
