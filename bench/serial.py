"""Baseline (b): agents that create one VM at a time, computed from the cost of one job.

Both models favour the baseline: their only cost is that of Proxmox's calls, as the floor measures it.
"""

from __future__ import annotations

import itertools
import math

#: The original agent polls a Proxmox task after 2, 4, 8, then every 8 seconds; a 10 s clone took 14.0 s there.
WAITS_S = (2, 4, 8)
#: FulcrumCore's Go library starts one job per tick.
TICK_S = 5.0


def period_by_waits(task_s: float) -> float:
    """Return the time of one job for an agent that polls after 2, 4, 8, 8, … seconds."""
    polls = itertools.accumulate(itertools.chain(WAITS_S, itertools.repeat(WAITS_S[-1])))
    return float(next(moment for moment in polls if moment >= task_s))


def period_by_ticks(job_s: float) -> float:
    """Return the time of one job for an agent that starts one job per tick and waits for its end."""
    return max(math.ceil(job_s / TICK_S), 1) * TICK_S


def jobs_per_min(task_s: float, floor_s: float) -> dict[str, float]:
    """Return the rate of both models for creates whose clone takes `task_s` and whose calls take `floor_s`."""
    return {
        "waits of 2, 4, 8 s": 60 / period_by_waits(task_s + floor_s),
        "a 5-second tick": 60 / period_by_ticks(task_s + floor_s),
    }
