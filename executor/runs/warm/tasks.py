"""Tasks of a run in the run's own process, where Ansible forks one for each.

The fork is there for many hosts at once. A play of ours has one host, which waits for each task, and a fork costs more
than most of our tasks: all pages that it touches are copied, and what it has worked out (wrapped filters, imported
plug-ins, compiled templates) is lost with it. A play of several hosts forks as ever.

What a fork keeps to itself is handed over as a copy: the task, its host, its variables' outer layer. The result goes
through the same queue, and thus through the same pickling, as a fork's.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from executor.runs.warm import patches

#: How often a play looks for a task's result. It is there when the task is over, so that one look will mostly do;
#: `internal_poll_interval` is for those who wait for a fork.
RESULT_POLL_S = 0.001


def install() -> None:
    """Let the tasks of this process's plays run in it."""
    forking_worker: Any = patches.WORKER.get()

    class WorkerProcess(forking_worker):  # type: ignore[misc]
        """A worker that is over when its start returns."""

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
            with _no_fork_of_its_own():
                self.run()

        def is_alive(self) -> bool:
            return False

        def close(self) -> None:
            """There is no process to let go of."""

        def _detach(self) -> None:
            """The run's own output is where Ansible's display writes."""

        def _hard_exit(self, e: str) -> None:
            """Where a fork dies: the play finds its worker dead, and fails."""
            patches.WORKER_DISPLAY.get().error(e)
            self.exitcode = 1

    patches.STRATEGY_WORKER.replace(WorkerProcess)
    patches.POLL_INTERVAL.replace(RESULT_POLL_S)


def _copied(task: Any) -> Any:
    copied = task.copy(exclude_parent=True, exclude_tasks=True)
    copied._parent = task._parent
    return copied


@contextmanager
def _no_fork_of_its_own() -> Iterator[None]:
    """Let the worker's code find its fork as it would be: other names in its module, nothing changed in the process.

    It would hand its display to the parent, be sent signals by it, and look at its end what was written to its output.
    """
    replaced = {name: name.get() for name in (patches.WORKER_DISPLAY, patches.WORKER_SIGNAL, patches.WORKER_SYS)}
    patches.WORKER_DISPLAY.replace(_Display(patches.WORKER_DISPLAY.get()))
    patches.WORKER_SIGNAL.replace(SimpleNamespace(signal=lambda *_: None, SIGINT=None, SIGTERM=None))
    patches.WORKER_SYS.replace(SimpleNamespace(stdout=io.StringIO(), stderr=io.StringIO()))
    try:
        yield
    finally:
        for name, value in replaced.items():
            name.replace(value)


class _Display:
    """Ansible's display, for one who is no fork."""

    def __init__(self, display: Any) -> None:
        self._display = display

    def __getattr__(self, name: str) -> Any:
        return getattr(self._display, name)

    def set_queue(self, queue: Any) -> None:
        """There is no other process that displays for this one."""
