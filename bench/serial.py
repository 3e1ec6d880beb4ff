"""Computes a baseline for bursts: the rate of agents that create one VM at a time.

There are two models of such an agent. Both are faster than a real agent, because a job of the model takes only the time
of its requests to Proxmox, which bench/floor.py measures.
"""

from __future__ import annotations

import itertools
import math

#: The original Proxmox agent waits so many seconds before each request for the status of a Proxmox task, and repeats
#: the last wait. With that agent, a clone of 10 s took 14.0 s.
POLL_WAITS_S = (2, 4, 8)
#: An agent that uses FulcrumCore's Go library starts at most one job in each interval of this length (tick).
TICK_S = 5.0


def job_s_with_poll_waits(task_s: float) -> float:
    """Return the time of one job for an agent that waits POLL_WAITS_S between two requests for a task's status.

    `task_s` is the time after which the Proxmox task has ended.
    """
    polls = itertools.accumulate(itertools.chain(POLL_WAITS_S, itertools.repeat(POLL_WAITS_S[-1])))
    return float(next(moment for moment in polls if moment >= task_s))


def job_s_with_ticks(job_s: float) -> float:
    """Return the time of one job for an agent that starts a job only at a tick, and only when the last job has ended.

    `job_s` is the time that the job itself takes.
    """
    return max(math.ceil(job_s / TICK_S), 1) * TICK_S


def jobs_per_min(task_s: float, floor_s: float) -> dict[str, float]:
    """Return the rates of both models for creates whose clone takes `task_s` and whose requests take `floor_s`."""
    return {
        "waits of 2, 4, 8 s": 60 / job_s_with_poll_waits(task_s + floor_s),
        "a 5-second tick": 60 / job_s_with_ticks(task_s + floor_s),
    }
