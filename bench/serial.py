"""Computes a baseline for bursts: the rate of agents that create one VM at a time.

There are two models of such an agent. Both are faster than a real agent, because a job of the model takes only the
time of its clone, of its requests to Proxmox (which bench/floor.py measures) and of the model's waits.
"""

from __future__ import annotations

import itertools
import math

#: An earlier Proxmox agent for FulcrumCore, written in PHP, waits for these times, in seconds, before its requests for
#: the status of a Proxmox task. The last wait is repeated. With that agent, a clone of 10 s took 14.0 s.
POLL_WAITS_S = (2, 4, 8)
#: The interval between two ticks. An agent that uses FulcrumCore's Go library starts at most one job at each tick.
TICK_S = 5.0


def job_duration_s_with_poll_waits(work_s: float) -> float:
    """Return the time of one job for an agent that waits POLL_WAITS_S before its requests for a task's status.

    `work_s` is the time of the job's clone and requests. The job ends at the first request for the status that the
    agent sends after `work_s`.
    """
    waits_s = itertools.chain(POLL_WAITS_S, itertools.repeat(POLL_WAITS_S[-1]))
    request_times_s = itertools.accumulate(waits_s)
    return float(next(request_s for request_s in request_times_s if request_s >= work_s))


def job_duration_s_with_ticks(work_s: float) -> float:
    """Return the time of one job for an agent that starts a job only at a tick, and only when the last job has ended.

    `work_s` is the time of the job's clone and requests.
    """
    ticks = max(math.ceil(work_s / TICK_S), 1)
    return ticks * TICK_S


def jobs_per_min(clone_s: float, floor_s: float) -> dict[str, float]:
    """Return the rates of both models for creates whose clone takes `clone_s` and whose requests take `floor_s`."""
    work_s = clone_s + floor_s
    return {
        "waits of 2, 4, 8 s": 60 / job_duration_s_with_poll_waits(work_s),
        "a 5-second tick": 60 / job_duration_s_with_ticks(work_s),
    }
