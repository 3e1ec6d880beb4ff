"""The wait of the main thread that a signal ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from executor.agent.signal_waiter import SignalWaiter

NEVER_S = 100.0


@pytest.fixture
def waiter() -> Iterator[SignalWaiter]:
    before = signal.signal(signal.SIGUSR2, lambda _signum, _frame: None)
    with SignalWaiter() as waiter:
        yield waiter
    signal.signal(signal.SIGUSR2, before)


def test_a_signal_ends_the_wait(waiter: SignalWaiter) -> None:
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR2)).start()
    started_at = time.monotonic()
    waiter.wait(NEVER_S)
    assert time.monotonic() - started_at < NEVER_S / 2


def test_signals_before_a_wait_end_only_that_wait(waiter: SignalWaiter) -> None:
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGUSR2)
    started_at = time.monotonic()
    waiter.wait(NEVER_S)
    assert time.monotonic() - started_at < NEVER_S / 2
    started_at = time.monotonic()
    waiter.wait(0.2)
    assert time.monotonic() - started_at >= 0.2
