"""Executes one run with ansible-runner: starts it, reads its output, checks its time limit, ends its processes.

A cold run is a new ansible-playbook process. For a warm run, a server process that has already imported Ansible forks a
parent process, and the parent process forks the run.

In this module, the guard of a run is the process that the agent starts for the run. The guard's standard input is a
pipe from the agent. When the agent closes the pipe or dies, the run's whole process tree is ended. For a cold run, the
guard is `process_tree.guard`, which ends the tree itself. For a warm run, it is `warm/client.py`, which asks the run's
parent process to end the tree. (Other modules call this parent process the guard of the warm run.)
"""

from __future__ import annotations

import contextlib
import errno
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
from executor.runs.output import OutputDecoder, RunOutput
from executor.runs.private_folder import CREDENTIALS_VARIABLE
from executor.runs.story import RunStory

log = get_logger(__name__)

#: Interval at which the deadline and the `should_cancel` callback are checked during a run, in seconds.
CHECK_INTERVAL_S = 0.2
#: A guard that ends a run sends TERM to the run's processes, and KILL after the grace period `process_tree.GRACE_S`. If
#: the processes still run GUARD_MARGIN_S after the end of the grace period, the agent kills them.
GUARD_MARGIN_S = 2.0
#: Maximum size of an event file that is parsed. ansible-runner's display callback writes one such file for each event.
MAX_EVENT_FILE_BYTES = 4 * 1024 * 1024
#: Maximum size of the part of the output that one call of `_read_output` reads.
MAX_READ_BYTES = 16 * 1024

#: The run folder contains the private folders of all runs. It counts as full if its file system has less free space
#: than this number of bytes.
MIN_FREE_BYTES = 64 * 1024
#: A run that has printed nothing for this time counts as stuck if the run folder was full at some time of the run. The
#: agent ends a stuck run.
MAX_TIME_WITHOUT_OUTPUT_S = 60.0

#: Matches the UUID of an event. The UUID becomes part of a file name, so it must not contain `/` or `.`, with which the
#: name could lead to a file in another folder.
_UUID = re.compile(r"[0-9A-Za-z-]{1,64}\Z")

Pipe = tuple[BinaryIO, BinaryIO]  # the end to read from, the end to write to


@contextlib.contextmanager
def open_execution(config: Any, output: RunOutput, story: RunStory) -> Iterator[Execution]:
    """Open the pipes of a run, and close them at the end of the block. `Execution.execute` starts the run.

    `config` is ansible-runner's configuration of the run. `story` receives each event of the run, and summarises what
    the run has done. The run can be cancelled during the whole block, even before the run starts.
    """
    with _open_pipe() as guard_pipe, _open_pipe() as output_pipe:
        yield Execution(config, output, story, guard_pipe, output_pipe)


class Execution:
    """The execution of one run: its guard, its pipes and its output."""

    def __init__(self, config: Any, output: RunOutput, story: RunStory, guard_pipe: Pipe, output_pipe: Pipe) -> None:
        self._config = config
        self._output = output
        self.story = story
        self._guard_input_reader, self._guard_input_writer = guard_pipe
        self._output_reader, self._output_writer = output_pipe
        self._events_folder = Path(config.artifact_dir, "job_events")
        #: the file in the run's private folder with the login at Proxmox; its path identifies the run's processes
        self._credentials_file = config.env[CREDENTIALS_VARIABLE]
        self._runner = ansible_runner.Runner(config, event_handler=self._add_event)
        self._event_filter = OutputEventFilter(output, self._add_event_from_output, suppress_ansible_output=True)
        # When the output exceeds a maximum size, the decoder calls `ignore_further_text`. Then only events are stored.
        self._output_decoder = OutputDecoder(self._event_filter.write, output.ignore_further_text)
        self._lock = threading.Lock()
        self._cancel_status: RunStatus | None = None  #: CANCELED or TIMEOUT after a call of `cancel`
        self._cancelled_at = 0.0  #: when the agent began to end the run: `cancel` was called, or the run was stuck
        self._folder_full_since: float | None = None  #: when the run folder was first found full; None if it was not
        self._last_output_at = time.monotonic()
        self._is_ended_as_stuck = False

    def execute(self, deadline: float, should_cancel: Callable[[], bool]) -> tuple[RunStatus, int]:
        """Execute the run until it ends, then end all its processes. Return its status and its exit code.

        `deadline` is a time of the clock `time.monotonic()`.
        """
        # `config` sets ansible-runner's mode "subprocess". In this mode, ansible-runner passes these pipes to the guard
        # and waits until the guard has ended.
        self._config.input_fd = self._guard_input_reader
        self._config.output_fd = self._config.error_fd = self._output_writer
        guard_thread = threading.Thread(target=self._run_guard, name=f"run-{self._config.ident}", daemon=True)
        try:
            guard_thread.start()
        except RuntimeError as error:  # the limit of threads, or of memory, is reached
            raise OSError(errno.EAGAIN, "the run cannot be started: no thread can be started") from error
        try:
            self._read_until_end(guard_thread, deadline, should_cancel)
        finally:
            self._end_processes(guard_thread)
            self._read_remaining_output()
        status, rc = self._status_and_exit_code()
        self._output.finish(status=status, rc=rc)
        if self._output.has_lost_essential_output and status is not RunStatus.CANCELED:
            log.error("run_output_lost", run_ident=self._config.ident, rc=rc)
            # The run folder was full, so a failure, a result, the final event, the exit code or the status could not
            # be stored. With this exit code, the run counts as killed: its outcome is unknown.
            return RunStatus.FAILED, process_tree.EXIT_ENDED_BY_GUARD
        return status, rc

    def cancel(self, status: RunStatus = RunStatus.CANCELED) -> None:
        """Ask the guard to end the run. The run then gets `status`, unless it succeeds before the guard ends it.

        Only the first call for a run sets the status. A call after the end of the run has no effect.
        """
        with self._lock:
            if self._cancel_status is None and not self._guard_input_writer.closed:
                self._cancel_status, self._cancelled_at = status, time.monotonic()
        self._close_guard_pipe()

    def _close_guard_pipe(self) -> None:
        """Close the agent's end of the guard's pipe, which makes the guard end the run."""
        with self._lock:
            self._guard_input_writer.close()

    def _run_guard(self) -> None:
        """Start the guard and wait for its end. A separate thread calls this method."""
        try:
            self._runner.run()
        except OSError as error:  # the disk is full or no process can be started: the run fails
            log.error("run_crashed", run_ident=self._config.ident, reason=str(error))
        finally:
            self._output_writer.close()
            self._guard_input_reader.close()

    def _read_until_end(
        self, guard_thread: threading.Thread, deadline: float, should_cancel: Callable[[], bool]
    ) -> None:
        """Read the run's output until its guard has ended. Check the deadline and `should_cancel` meanwhile."""
        poll, next_check_at = _make_input_poll(self._output_reader), 0.0
        while guard_thread.is_alive():
            has_input = poll.poll(CHECK_INTERVAL_S * 1000)  # milliseconds
            if has_input and not self._read_output():
                guard_thread.join(CHECK_INTERVAL_S)  # the output is closed shortly before the guard ends
            now = time.monotonic()
            if now < next_check_at:
                continue
            next_check_at = now + CHECK_INTERVAL_S
            self._cancel_if_needed(now, deadline, should_cancel)

    def _cancel_if_needed(self, now: float, deadline: float, should_cancel: Callable[[], bool]) -> None:
        """Cancel the run at its deadline, or when `should_cancel` returns True.

        If the run is already cancelled and its guard does not end the processes in time, kill them.
        """
        if self._cancel_status is not None or self._is_ended_as_stuck:
            if now > self._cancelled_at + process_tree.GRACE_S + GUARD_MARGIN_S:  # the guard is suspended or dead
                process_tree.end_processes(self._find_processes, grace_s=0)
        elif should_cancel():
            self.cancel()
        elif now >= deadline:
            self.cancel(RunStatus.TIMEOUT)
        elif self._is_stuck(now):
            log.warning("run_stands_still", run_ident=self._config.ident)  # the log event of a stuck run
            self._is_ended_as_stuck, self._cancelled_at = True, now
            self._close_guard_pipe()  # `_cancel_status` stays None, so the run counts as killed: its outcome is unknown

    def _is_stuck(self, now: float) -> bool:
        """True if the run folder was full, and the run has printed nothing for MAX_TIME_WITHOUT_OUTPUT_S since then.

        Ansible may wait for ever after one of its processes could not write a file.
        """
        with contextlib.suppress(OSError):
            space = os.statvfs(os.path.dirname(self._credentials_file))
            if self._folder_full_since is None and space.f_bavail * space.f_frsize < MIN_FREE_BYTES:
                self._folder_full_since = now
        return (
            self._folder_full_since is not None
            and now > max(self._folder_full_since, self._last_output_at) + MAX_TIME_WITHOUT_OUTPUT_S
        )

    def _end_processes(self, guard_thread: threading.Thread) -> None:
        """End all processes of the run, even if its guard was killed."""
        self._close_guard_pipe()
        guard_thread.join(process_tree.GRACE_S + GUARD_MARGIN_S)
        # If the guard still exists, the grace period of the guard is over, and the processes get no second grace
        # period.
        grace_s = 0 if guard_thread.is_alive() else process_tree.GRACE_S
        if orphans := process_tree.end_processes(self._find_processes, grace_s=grace_s):
            log.warning("orphan_processes_killed", run_ident=self._config.ident, process_count=len(orphans))
        guard_thread.join()

    def _read_remaining_output(self) -> None:
        poll = _make_input_poll(self._output_reader)
        while poll.poll(0) and self._read_output():
            pass
        self._event_filter.close()

    def _read_output(self) -> bool:
        """Read the next part of the output. Return False at the end of the output."""
        data = os.read(self._output_reader.fileno(), MAX_READ_BYTES)
        self._last_output_at = time.monotonic()
        self._output_decoder.feed(data)
        return bool(data)

    def _find_processes(self) -> set[int]:
        """Return the process ids of this run, found by the path of its credentials file in their environment."""
        # NUL ends the value of a variable in /proc/<pid>/environ.
        return process_tree.processes_with_variable(CREDENTIALS_VARIABLE, f"{self._credentials_file}\0")

    def _status_and_exit_code(self) -> tuple[RunStatus, int]:
        """Return the status and the exit code of the ended run.

        If a signal killed the guard, the exit code is 128 plus the number of the signal.
        """
        # `rc` is None if the guard could not be started. Then the run gets the exit code that a guard returns when it
        # has ended a run.
        rc = process_tree.EXIT_ENDED_BY_GUARD if self._runner.rc is None else int(self._runner.rc)
        if rc == 0:  # even after a cancellation: the run succeeded before the guard ended it
            return RunStatus.SUCCESSFUL, 0
        if self._cancel_status is not None:
            return self._cancel_status, process_tree.EXIT_ENDED_BY_GUARD
        exit_code = rc if rc > 0 else 128 - rc  # `subprocess` returns the negative number of a signal
        return RunStatus.FAILED, exit_code

    def _add_event_from_output(self, output_event: dict[str, Any]) -> None:
        """Let ansible-runner read the file of an event, then store the event.

        ansible-runner's display callback writes each event to a file, and an event mark, which contains the event's
        UUID, to the output. The event filter calls this method for each event mark, and for each line of plain output.
        The event filter gives each line of plain output a UUID, for which there is no file. The output may also contain
        text from a guest or from Proxmox that looks like an event mark. So only a few members of the mark are used, and
        all other members of the event come from the file. If the file is truncated, too large or not JSON, a
        placeholder event is stored instead, so that the run continues.
        """
        if not _UUID.match(str(output_event.get("uuid", ""))):
            return
        event_file = self._events_folder / f"{output_event['uuid']}-partial.json"
        used_members = ("uuid", "counter", "stdout", "start_line", "end_line")
        event = {key: output_event[key] for key in used_members if key in output_event}
        # "event" is the event's kind. A line of plain output has the kind "verbose". If the event has a file,
        # `event_callback` overwrites this kind with the kind in the file.
        event |= {"event": "verbose"}
        try:
            if event_file.exists() and event_file.stat().st_size > MAX_EVENT_FILE_BYTES:
                raise ValueError("too large")
            self._runner.event_callback(event)
        except (ValueError, TypeError, OSError, RecursionError) as error:
            with contextlib.suppress(OSError):
                event_file.unlink(missing_ok=True)
            self._add_event(event | {"smith_unreadable": type(error).__name__})

    def _add_event(self, event: dict[str, Any]) -> bool:
        """Store one event. Return False, so that ansible-runner does not store the event in addition."""
        self._output.add_event(event)
        self.story.add_event(event)
        return False


@contextlib.contextmanager
def _open_pipe() -> Iterator[Pipe]:
    reader_fd, writer_fd = os.pipe2(os.O_CLOEXEC)
    with open(reader_fd, "rb", buffering=0) as reader, open(writer_fd, "wb", buffering=0) as writer:
        yield reader, writer


def _make_input_poll(file: BinaryIO) -> select.poll:
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return poll
