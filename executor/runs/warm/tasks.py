"""Makes a warm run execute its Ansible tasks in its own process instead of one forked process for each Ansible task.

A warm run is a fork of a server process that has already imported Ansible. For each Ansible task, Ansible forks once
more, so that it can process many hosts at once. Our plays have one host, and such a fork costs more than most of our
Ansible tasks: the kernel copies each memory page to which the fork writes, and the filters, plugins and templates that
the fork has loaded are lost when it ends. For a play with several hosts, Ansible forks as usual.

Ansible's class WorkerProcess makes the fork. This module replaces it with a class that does not fork. In a fork, code
may change the Ansible task, the host and the variables, and the play is not affected. So the class of this module uses
copies of these objects. The result of the Ansible task passes through the same queue as the result of a fork, and is
pickled in the same way.

The module `patches` contains an object for each private name of Ansible that warm runs use. The object's method
`set_value` replaces the value of the name in this process.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from executor.runs.warm import patches

#: How long a play waits between two polls for the result of an Ansible task. It replaces Ansible's setting
#: `internal_poll_interval`. The default of this setting suits Ansible tasks that run in forks. Here the default is too
#: long: the Ansible task has ended before the first poll, and only the queue delays its result.
RESULT_POLL_INTERVAL_S = 0.001


def replace_worker_class() -> None:
    """Make each play in this process run its Ansible tasks in this process."""
    forking_worker: Any = patches.WORKER_CLASS.get_value()

    class WorkerProcess(forking_worker):  # type: ignore[misc]
        """A worker that starts no process: the method `start` runs the Ansible task and returns when it has ended."""

        exitcode: Any = None
        _task: Any
        _host: Any
        _task_vars: Any

        def start(self) -> None:
            has_several_hosts = len(self._task_vars["ansible_play_hosts_all"]) > 1
            if has_several_hosts:
                self.__class__ = forking_worker  # so that all calls, beginning with `start`, use Ansible's methods
                self.start()
                return
            self._task = _copy_task(self._task)
            self._host = copy.copy(self._host)
            self._task_vars = dict(self._task_vars)
            with _protecting_process_from_worker():
                self.run()

        def is_alive(self) -> bool:
            return False

        def close(self) -> None:
            """Do nothing, because there is no process to close."""

        def _detach(self) -> None:
            """Do nothing. The original method would close the standard output, to which this run still writes."""

        def _hard_exit(self, e: str) -> None:
            """Show the error `e` and set the exit code, so that the play fails. The original would end this process."""
            patches.WORKER_DISPLAY.get_value().error(e)
            self.exitcode = 1

    # The strategies take the worker class from their own module, not from the module that defines it.
    patches.STRATEGY_WORKER_CLASS.set_value(WorkerProcess)
    patches.POLL_INTERVAL.set_value(RESULT_POLL_INTERVAL_S)


def _copy_task(task: Any) -> Any:
    """Return a copy of an Ansible task with the same parent in the play."""
    task_copy = task.copy(exclude_parent=True, exclude_tasks=True)
    task_copy._parent = task._parent
    return task_copy


@contextmanager
def _protecting_process_from_worker() -> Iterator[None]:
    """Replace three names in the module of Ansible's worker, so that the worker's code does not change this process.

    The code was written for a fork: it makes the display send its messages to the parent process, sets signal handlers,
    and at the end checks whether the fork has written to its standard output.
    """
    replaced_names = (patches.WORKER_DISPLAY, patches.WORKER_SIGNAL, patches.WORKER_SYS)
    original_values = [private_name.get_value() for private_name in replaced_names]
    patches.WORKER_DISPLAY.set_value(_DisplayWithoutQueue(patches.WORKER_DISPLAY.get_value()))
    patches.WORKER_SIGNAL.set_value(SimpleNamespace(signal=lambda *_: None, SIGINT=None, SIGTERM=None))
    patches.WORKER_SYS.set_value(SimpleNamespace(stdout=io.StringIO(), stderr=io.StringIO()))
    try:
        yield
    finally:
        for private_name, value in zip(replaced_names, original_values, strict=True):
            private_name.set_value(value)


class _DisplayWithoutQueue:
    """Ansible's display, for a worker that is not a fork."""

    def __init__(self, display: Any) -> None:
        self._display = display

    def __getattr__(self, name: str) -> Any:
        return getattr(self._display, name)

    def set_queue(self, queue: Any) -> None:
        """Do nothing. A fork would use the queue to send its messages to its parent process."""
