"""Runs the Ansible tasks of a play in the run's own process, where Ansible forks a process for each.

Ansible forks so that many hosts work at once. A play of ours has one host, and a fork costs more than most of our
Ansible tasks: each page that it writes to is copied, and what it has computed (wrapped filters, imported plugins,
compiled templates) is lost at its end. A play of several hosts forks as usual.

Objects that a fork could change without effect are copied: the Ansible task, its host, the mapping of its variables.
The result goes through the same queue as that of a fork, and so through the same pickling.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from executor.runs.warm import patches

#: How often a play polls for the result of an Ansible task. The first poll mostly finds it; the default of
#: `internal_poll_interval` is meant for forks.
RESULT_POLL_S = 0.001


def install() -> None:
    """Make the plays of this process run their Ansible tasks in it."""
    forking_worker: Any = patches.WORKER.get()

    class WorkerProcess(forking_worker):  # type: ignore[misc]
        """A worker that has ended when its start returns."""

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
            """There is no process to close."""

        def _detach(self) -> None:
            """Keep the run's own output, to which Ansible's display writes."""

        def _hard_exit(self, e: str) -> None:
            """A fork would exit here. The play sees a dead worker and fails."""
            patches.WORKER_DISPLAY.get().error(e)
            self.exitcode = 1

    patches.STRATEGY_WORKER.replace(WorkerProcess)
    patches.POLL_INTERVAL.replace(RESULT_POLL_S)


def _copied(task: Any) -> Any:
    copied = task.copy(exclude_parent=True, exclude_tasks=True)
    copied._parent = task._parent
    return copied


@contextmanager
def _without_fork() -> Iterator[None]:
    """Replace three names in the worker's module, so that its code for a fork does not change this process.

    In a fork it sends its display to the parent, sets signal handlers, and checks at its end what it has printed.
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
    """Ansible's display for a worker that is not a fork."""

    def __init__(self, display: Any) -> None:
        self._display = display

    def __getattr__(self, name: str) -> Any:
        return getattr(self._display, name)

    def set_queue(self, queue: Any) -> None:
        """Ignore the queue by which a fork displays in its parent."""
