"""Waits at the start of an agent until the database can be used.

A database that is away, locked or failing over may be usable a minute later. If the agent ended, nothing would start it
again: the supervisor, systemd and podman treat the exit code of a database error as final.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from executor.errors import DatabaseUnavailable
from executor.log import get_logger
from executor.processes.progress import ProgressSender

log = get_logger(__name__)

#: The wait before the second attempt. Each further wait is twice as long, up to MAX_WAIT_S.
MIN_WAIT_S, MAX_WAIT_S = 0.5, 10.0
#: How often the wait reports progress to the supervisor and checks for a stop signal.
CHECK_INTERVAL_S = 0.2


def use_database_when_available(use: Callable[[], None], is_stop_requested: Callable[[], bool]) -> bool:
    """Call `use` until it does not raise DatabaseUnavailable; return True. Return False after a stop signal.

    Raises every other DatabaseError, for example for a schema that is newer than this program.
    """
    progress, wait_s, failed_at = ProgressSender(), MIN_WAIT_S, None
    while True:
        progress.report_progress()
        try:
            use()
        except DatabaseUnavailable as error:
            if failed_at is None:
                failed_at = time.monotonic()
                log.error("start_waits_for_database", reason=str(error).splitlines()[0])
                progress.report_ready()  # systemd would end an agent that does not report its start in time
                progress.report_status("waiting for the database")
            if not _wait(wait_s, progress, is_stop_requested):
                return False
            wait_s = min(wait_s * 2, MAX_WAIT_S)
        else:
            if failed_at is not None:
                log.info("database_available", waited_s=round(time.monotonic() - failed_at, 1))
            return True


def _wait(wait_s: float, progress: ProgressSender, is_stop_requested: Callable[[], bool]) -> bool:
    """Wait; return True. Return False after a stop signal."""
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        if is_stop_requested():
            return False
        progress.report_progress()
        time.sleep(CHECK_INTERVAL_S)
    return True
