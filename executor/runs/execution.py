"""Executes one run with ansible-runner: starts it, reads its output, checks its time limit, ends its processes.

The root process of a run is a guard: `process_tree.guard`, or `warm/client.py` for a warm run. Its standard input is
a pipe from the agent. When the agent closes the pipe or dies, the guard ends the whole process tree.
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

#: How often the deadline and the `cancelled` callback are checked during a run.
CHECK_INTERVAL_S = 0.2
#: The guard ends the run's processes with TERM, and after a grace period with KILL. When this extra time has passed,
#: too, the agent kills the processes itself.
GUARD_MARGIN_S = 2.0
#: ansible-runner's display callback writes each event to a file of its own. A larger file is not parsed.
MAX_EVENT_FILE_BYTES = 4 * 1024 * 1024
READ_BYTES = 16 * 1024

_UUID = re.compile(r"[0-9A-Za-z-]{1,64}\Z")

Pipe = tuple[BinaryIO, BinaryIO]  # reader, writer


@contextlib.contextmanager
def prepared(config: Any, output: RunOutput) -> Iterator[Execution]:
    """Prepare a run. The run can be cancelled from then on, even before it starts.

    At the end of the block, the pipes of the run are closed.
    """
    with _pipe() as guard_input, _pipe() as run_output:
        yield Execution(config, output, guard_input, run_output)


class Execution:
    """The execution of one run: its guard, its pipes and its output."""

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
        self._cancel_status: RunStatus | None = None  #: the status of a run that the agent has cancelled
        self._cancelled_at = 0.0

    def execute(self, deadline: float, cancelled: Callable[[], bool]) -> tuple[RunStatus, int]:
        """Execute the run until it ends, then end all its processes. Return its status and its exit code.

        `deadline` is a point in `time.monotonic()`.
        """
        # `runner_config` sets the mode "subprocess". In this mode, ansible-runner passes these pipes to the guard and
        # waits until the guard has ended.
        self._config.input_fd = self._guard_input
        self._config.output_fd = self._config.error_fd = self._output_writer
        thread = threading.Thread(target=self._run, name=f"run-{self._config.ident}", daemon=True)
        thread.start()
        try:
            self._read_until_end(thread, deadline, cancelled)
        finally:
            self._end_processes(thread)
            self._read_remaining_output()
        status, rc = self._outcome()
        self._output.finish(status=status, rc=rc)
        return status, rc

    def cancel(self, status: RunStatus = RunStatus.CANCELED) -> None:
        """Ask the guard to end the run. The run then gets `status`, unless it succeeds before.

        Only the first call for a run sets the status. A call after the end of the run has no effect.
        """
        with self._lock:
            if self._cancel_status is None and not self._guard_pipe.closed:
                self._cancel_status, self._cancelled_at = status, time.monotonic()
        self._close_guard_pipe()

    def _close_guard_pipe(self) -> None:
        with self._lock:
            self._guard_pipe.close()

    def _run(self) -> None:
        """Start the guard and wait for its end, in a thread of its own."""
        try:
            self._runner.run()
        except OSError as error:  # the disk is full or no process can be started: the run fails
            log.error("run_crashed", run_ident=self._config.ident, reason=str(error))
        finally:
            self._output_writer.close()
            self._guard_input.close()

    def _read_until_end(self, thread: threading.Thread, deadline: float, cancelled: Callable[[], bool]) -> None:
        """Read the run's output until its guard has ended. Check the deadline and `cancelled` meanwhile."""
        poll, next_check_at = _poll(self._run_output), 0.0
        while thread.is_alive():
            if poll.poll(CHECK_INTERVAL_S * 1000) and not self._read():
                thread.join(CHECK_INTERVAL_S)  # the output is closed shortly before the guard ends
            now = time.monotonic()
            if now < next_check_at:
                continue
            next_check_at = now + CHECK_INTERVAL_S
            self._check_limits(now, deadline, cancelled)

    def _check_limits(self, now: float, deadline: float, cancelled: Callable[[], bool]) -> None:
        """Cancel the run at its deadline, or when `cancelled` returns True.

        Kill the processes of a cancelled run if its guard does not end them in time.
        """
        if self._cancel_status is not None:
            if now > self._cancelled_at + process_tree.GRACE_S + GUARD_MARGIN_S:
                process_tree.end_processes(self._processes, grace_s=0)  # the guard is suspended or dead
        elif cancelled():
            self.cancel()
        elif now >= deadline:
            self.cancel(RunStatus.TIMEOUT)

    def _end_processes(self, thread: threading.Thread) -> None:
        """End all processes of the run, even if its guard was killed."""
        self._close_guard_pipe()
        thread.join(process_tree.GRACE_S + GUARD_MARGIN_S)
        if orphans := process_tree.end_processes(
            self._processes, grace_s=0 if thread.is_alive() else process_tree.GRACE_S
        ):
            log.warning("orphan_processes_killed", run_ident=self._config.ident, processes=len(orphans))
        thread.join()

    def _read_remaining_output(self) -> None:
        poll = _poll(self._run_output)
        while poll.poll(0) and self._read():
            pass
        self._filter.close()

    def _read(self) -> bool:
        """Read the next part of the output. Return False at its end."""
        data = os.read(self._run_output.fileno(), READ_BYTES)
        self._reader.feed(data)
        return bool(data)

    def _processes(self) -> set[int]:
        """Return the process ids of this run, found by the path of its credentials file in their environment."""
        return process_tree.processes_with_variable(CREDENTIALS_VARIABLE, f"{self._credentials_file}\0")

    def _outcome(self) -> tuple[RunStatus, int]:
        """Return the status and the exit code of the ended run. The exit code after a signal is 128 plus its number."""
        rc = process_tree.ENDED if self._runner.rc is None else int(self._runner.rc)
        if rc == 0:  # a cancelled run may have this exit code, too: it succeeded before the cancellation took effect
            return RunStatus.SUCCESSFUL, 0
        if self._cancel_status is not None:
            return self._cancel_status, process_tree.ENDED
        return RunStatus.FAILED, rc if rc > 0 else 128 - rc

    def _on_event(self, event: dict[str, Any]) -> None:
        """Let ansible-runner read the file of the event whose mark was found in the output.

        ansible-runner's display callback writes each event to a file, and a mark with the event's UUID to the output.
        The output may also contain text from a guest or from Proxmox that looks like a mark. So of the mark only a few
        members are used, and the file defines the event. If the file is truncated, too large or not JSON, a placeholder
        event is stored instead, so that the run continues.
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
        """Store one event. Return False, so that ansible-runner writes no copy of it."""
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
