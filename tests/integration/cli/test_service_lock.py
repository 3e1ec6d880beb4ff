"""How a run by hand renews its lease, during which no other run and no job of the service starts."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine
from support.recorded_waits import RecordedWaits

from executor.cli import service_lock
from executor.cli.service_lock import GUARD_SHARE_OF_LEASE, LEASE_S, RENEWAL_INTERVAL_S, locked_service


def test_the_wait_for_the_next_renewal_is_shorter_by_the_duration_of_the_last_one(
    sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a slow renewal, the next one begins at once, because little of the lease is left."""
    limits: list[float] = []
    with locked_service(sqlite_engine, action="start", service_id="s-1", vmid=100) as lock:
        lock._has_run_ended.set()  # ends the thread that renews the lease
        # The clock is read before and after each renewal. The three renewals take 4 s, 50 s and 0 s.
        clock = iter([1000.0, 1004.0, 1010.0, 1060.0, 1060.0, 1060.0])
        monkeypatch.setattr(service_lock, "boottime_s", lambda: next(clock))
        lock._on_deadline_changed = limits.append
        lock._has_run_ended = waits = RecordedWaits(set_at_call=4)

        lock.renew_until_end(sqlite_engine)

    assert waits.waits_s == [RENEWAL_INTERVAL_S, RENEWAL_INTERVAL_S - 4.0, 0.0, RENEWAL_INTERVAL_S]
    assert limits == [started_at + LEASE_S * GUARD_SHARE_OF_LEASE for started_at in (1000.0, 1010.0, 1060.0)]
