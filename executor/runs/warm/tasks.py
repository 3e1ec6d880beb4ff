"""Makes a warm run execute its Ansible tasks in its own process instead of one forked process for each Ansible task.

A warm run is a fork of a server process that has already imported Ansible. For each Ansible task, Ansible forks once
more, so that it can work on many hosts at once. Our plays have one host, and such a fork costs more than most of our
Ansible tasks: the kernel copies each memory page to which the fork writes, and the filters, plugins and templates that
the fork has loaded are lost when it ends. For a play with several hosts, Ansible forks as usual.

In a fork, code may change the Ansible task, the host and the variables without an effect on the play. So that this also
holds without a fork, the Ansible task gets copies. Its result passes through the same queue as the result of a fork,
and is pickled in the same way.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from executor.runs.warm import patches

#: How long a play waits between two polls for the result of an Ansible task. Usually the first poll finds the result.
#: The default of Ansible's `internal_poll_interval` is meant for forks and would be too long.
RESULT_POLL_S = 0.001


def install() -> None:
    """Make each play in this process run its Ansible tasks in this process."""
    forking_worker: Any = patches.WORKER.get()

    class WorkerProcess(forking_worker):  # type: ignore[misc]
        """Ansible's worker process without a process: `start` runs the Ansible task and returns when it has ended."""

        exitcode: Any = None
        _task: Any
        _host: Any
        _task_vars: Any

        def start(self) -> None:
            if len(self._task_vars["ansible_play_hosts_all"]) > 1:
                self.__class__ = forking_worker
                self.start()
                return
            self._task, self._host, self._task_vars = _copied(self._task), copy.copy(self._host), dict(self._task_vars)
            with _without_fork():
                self.run()

        def is_alive(self) -> bool:
            return False

        def close(self) -> None:
            """Do nothing, because there is no process to close."""

        def _detach(self) -> None:
            """Do nothing.

            The original closes the output of a fork, but Ansible's display writes to the run's output here.
            """

        def _hard_exit(self, e: str) -> None:
            """Report the failure `e` of this worker, and set the exit code by which the play fails.

            A fork would exit here.
            """
            patches.WORKER_DISPLAY.get().error(e)
            self.exitcode = 1

    patches.STRATEGY_WORKER.replace(WorkerProcess)
    patches.POLL_INTERVAL.replace(RESULT_POLL_S)


def _copied(task: Any) -> Any:
    """Return a copy of an Ansible task with the same parent in the play."""
    copied = task.copy(exclude_parent=True, exclude_tasks=True)
    copied._parent = task._parent
    return copied


@contextmanager
def _without_fork() -> Iterator[None]:
    """Replace three names in the module of Ansible's worker, so that its code for a fork does not change this process.

    This code makes the display send its messages to the parent process, sets signal handlers, and at the end checks
    whether the fork has written to its standard output.
    """
    originals = {name: name.get() for name in (patches.WORKER_DISPLAY, patches.WORKER_SIGNAL, patches.WORKER_SYS)}
    patches.WORKER_DISPLAY.replace(_Display(patches.WORKER_DISPLAY.get()))
    patches.WORKER_SIGNAL.replace(SimpleNamespace(signal=lambda *_: None, SIGINT=None, SIGTERM=None))
    patches.WORKER_SYS.replace(SimpleNamespace(stdout=io.StringIO(), stderr=io.StringIO()))
    try:
        yield
    finally:
        for name, value in originals.items():
            name.replace(value)


class _Display:
    """Ansible's display, for a worker that is not a fork."""

    def __init__(self, display: Any) -> None:
        self._display = display

    def __getattr__(self, name: str) -> Any:
        return getattr(self._display, name)

    def set_queue(self, queue: Any) -> None:
        """Ignore the queue. Through it, a fork would send its messages to its parent process."""
