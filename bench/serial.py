"""Baseline (b): agents that make one VM at a time, computed from what one job costs here.

Both models are kind to the baseline: their own work costs nothing but Proxmox's calls, as the floor measures them.
"""

from __future__ import annotations

import itertools
import math

#: The original agent asks a Proxmox task after 2, 4, 8, then every 8 seconds; measured there: 14.0 s for a 10 s clone.
WAITS_S = (2, 4, 8)
#: FulcrumCore's Go library starts one job a tick.
TICK_S = 5.0


def period_by_waits(task_s: float) -> float:
    """Return the time of one job to an agent that looks after 2, 4, 8, 8, … seconds."""
    looks = itertools.accumulate(itertools.chain(WAITS_S, itertools.repeat(WAITS_S[-1])))
    return float(next(moment for moment in looks if moment >= task_s))


def period_by_ticks(job_s: float) -> float:
    """Return the time of one job to an agent that starts one a tick and waits for its end."""
    return max(math.ceil(job_s / TICK_S), 1) * TICK_S


def jobs_per_min(task_s: float, floor_s: float) -> dict[str, float]:
    """Return what both models make of creates whose clone takes `task_s` and whose calls take `floor_s`."""
    return {
        "waits of 2, 4, 8 s": 60 / period_by_waits(task_s + floor_s),
        "a 5-second tick": 60 / period_by_ticks(task_s + floor_s),
    }
