"""Computes the baseline for bursts: the rate of agents that create one VM at a time.

There are two models of such an agent. Both are faster than a real one, because a job costs only the calls of Proxmox,
as bench/floor.py measures them.
"""

from __future__ import annotations

import itertools
import math

#: The original agent polls a Proxmox task after 2, 4, 8, then every 8 seconds; a 10 s clone took 14.0 s there.
POLL_WAITS_S = (2, 4, 8)
#: FulcrumCore's Go library starts one job per tick.
TICK_S = 5.0


def job_s_with_poll_waits(task_s: float) -> float:
    """Return the time of one job for an agent that polls after 2, 4, 8, 8, … seconds."""
    polls = itertools.accumulate(itertools.chain(POLL_WAITS_S, itertools.repeat(POLL_WAITS_S[-1])))
    return float(next(moment for moment in polls if moment >= task_s))


def job_s_with_ticks(job_s: float) -> float:
    """Return the time of one job for an agent that starts one job per tick and waits for its end."""
    return max(math.ceil(job_s / TICK_S), 1) * TICK_S


def jobs_per_min(task_s: float, floor_s: float) -> dict[str, float]:
    """Return the rate of both models for creates whose clone takes `task_s` and whose calls take `floor_s`."""
    return {
        "waits of 2, 4, 8 s": 60 / job_s_with_poll_waits(task_s + floor_s),
        "a 5-second tick": 60 / job_s_with_ticks(task_s + floor_s),
    }
