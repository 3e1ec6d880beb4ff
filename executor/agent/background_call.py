"""Calls a function in a new thread while the main thread reports progress to the supervisor.

The supervisor, the agent's parent process, kills an agent whose main thread reports no progress for too long. So the
main thread calls functions that may take long, such as a migration of the database, through this module.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

#: Time between two reports of progress.
REPORT_INTERVAL_S = 0.2


def call_while_reporting_progress(
    function: Callable[[], object], report_progress: Callable[[], object], *, timeout_s: float | None = None
) -> bool:
    """Call `function` in another thread. Meanwhile, call `report_progress` every REPORT_INTERVAL_S.

    Return True when `function` has ended. Return False when `function` still runs after `timeout_s`; it then continues
    in its thread. Raises the exception that `function` has raised.
    """
    errors: list[BaseException] = []

    def call() -> None:
        try:
            function()
        except BaseException as error:  # raised again in the calling thread
            errors.append(error)

    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    thread = threading.Thread(target=call, name="background-call", daemon=True)
    thread.start()
    while thread.is_alive():
        report_progress()
        if deadline is not None and time.monotonic() >= deadline:
            return False
        thread.join(REPORT_INTERVAL_S)
    if errors:
        raise errors[0]
    return True
