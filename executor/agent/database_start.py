"""Waits at the start of an agent until the database can be used.

A database that is unreachable, locked or failing over may be usable a minute later. If the agent ended instead of
waiting, nothing would start it again, because the supervisor (the parent process of the agent), systemd and podman
treat the exit code of a database error as final.

During a rolling upgrade of several agents on PostgreSQL, the first agent of the newer version migrates the schema. If
an agent of the earlier version is restarted after the migration, the agent waits until an operator upgrades the agent
or downgrades the schema.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from executor.agent.background_call import call_while_reporting_progress
from executor.errors import DatabaseError, DatabaseUnavailable, SchemaTooNew
from executor.log import get_logger
from executor.processes.progress import ProgressSender

log = get_logger(__name__)

#: The wait before the second attempt. Each further wait is twice as long, up to MAX_WAIT_S.
MIN_WAIT_S, MAX_WAIT_S = 0.5, 10.0
#: The preparation of the database migrates the schema and registers the agent process. When the preparation takes
#: longer than this, for example because a large table is migrated, the agent reports that it is ready before the
#: preparation has ended. Otherwise systemd or podman would end the agent, because its start takes too long.
MAX_START_WITHOUT_READY_S = 10.0
#: Interval at which a waiting agent reports progress to the supervisor and checks whether a stop signal has arrived.
CHECK_INTERVAL_S = 0.2


def prepare_database_when_available(
    prepare: Callable[[], None], is_stop_requested: Callable[[], bool], *, waits_for_agent_upgrade: bool = False
) -> bool:
    """Prepare the database: call `prepare` until it raises no exception; return True. Return False after a stop signal.

    Wait and call `prepare` again after DatabaseUnavailable and, with `waits_for_agent_upgrade`, after SchemaTooNew.
    Raises every other DatabaseError.
    """
    progress, wait_s, first_failed_at, previous_awaited_text = ProgressSender(), MIN_WAIT_S, None, ""
    awaited_errors = (DatabaseUnavailable, SchemaTooNew) if waits_for_agent_upgrade else DatabaseUnavailable
    while True:
        try:
            call_while_reporting_progress(prepare, report_progress=PreparationProgress(progress).report)
        except awaited_errors as error:
            first_failed_at = first_failed_at or time.monotonic()
            awaited_text = (
                "an upgrade of this agent, because the database has a newer schema"
                if isinstance(error, SchemaTooNew)
                else "the database"
            )
            if awaited_text != previous_awaited_text:
                previous_awaited_text = awaited_text
                _log_wait(error)
                progress.report_ready()  # otherwise systemd or podman would end the agent during a long wait
                progress.report_status(f"waiting for {awaited_text}")
            if not _wait_unless_stopped(wait_s, progress, is_stop_requested):
                return False
            wait_s = min(wait_s * 2, MAX_WAIT_S)
        else:
            if first_failed_at is not None:
                log.info("database_available", waited_s=round(time.monotonic() - first_failed_at, 1))
            return True


def _log_wait(error: DatabaseError) -> None:
    reason = str(error).splitlines()[0]
    if isinstance(error, SchemaTooNew):
        log.warning("start_waits_for_upgrade", reason=reason)
    else:
        log.error("start_waits_for_database", reason=reason)


class PreparationProgress:
    """Reports the progress of one attempt to prepare the database."""

    def __init__(self, progress: ProgressSender) -> None:
        self._progress = progress
        self._started_at = time.monotonic()

    def report(self) -> None:
        """Report progress, and after MAX_START_WITHOUT_READY_S also that the agent is ready."""
        self._progress.report_progress()
        if time.monotonic() - self._started_at >= MAX_START_WITHOUT_READY_S:
            self._progress.report_ready()
            self._progress.report_status("preparing the database")


def _wait_unless_stopped(wait_s: float, progress: ProgressSender, is_stop_requested: Callable[[], bool]) -> bool:
    """Wait for `wait_s` and return True. Return False at once after a stop signal."""
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        if is_stop_requested():
            return False
        progress.report_progress()
        time.sleep(CHECK_INTERVAL_S)
    return True
