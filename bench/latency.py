"""Measures how long a job takes when the agent has no other job: from the poll that finds it to the job's report."""

from __future__ import annotations

import uuid
from typing import Any

from smith_lab.simulator.rows import Job
from smith_lab.system import LabSystem

from bench.baseline import BASELINE, CURRENT
from bench.labs import order_services_and_wait, wait_for_jobs
from bench.measuring import MeasurementFailed, median
from bench.part import Bench, Goal, Part, Table, ratio_text, reversed_in_odd_rounds

Json = dict[str, Any]
ACTIONS = ("create", "start", "stop")
#: Goals: the maximum latency of each action. The goal of stop is higher, because the Ansible module that shuts the VM
#: down sleeps for a second.
MAX_LATENCY_S = {"create": 0.45, "start": 0.45, "stop": 1.4}


def measure(bench: Bench) -> Json:
    """Return the times of create, start and stop of one VM and their medians, by variant.

    A variant is a version of the executor. In the Proxmox stand-in of this measurement, a clone takes no time.
    """
    seconds_by_variant: dict[str, dict[str, list[float]]] = {
        variant.name: {action: [] for action in ACTIONS} for variant in bench.executor_variants()
    }
    labs_by_variant = bench.labs_with_agents()
    for number in range(-bench.sizes.warm_up_rounds, bench.sizes.rounds):  # a warm-up round has a negative number
        for variant_name in reversed_in_odd_rounds(list(labs_by_variant), number):
            seconds_by_action = _measure_actions(labs_by_variant[variant_name])
            if number >= 0:
                for action, seconds in seconds_by_action.items():
                    seconds_by_variant[variant_name][action].append(seconds)
    return {
        name: {action: {"median_s": median(values), "s_by_round": values} for action, values in by_action.items()}
        for name, by_action in seconds_by_variant.items()
    }


def _measure_actions(lab: LabSystem) -> dict[str, float]:
    """Create, start and stop a VM. Return the seconds from the poll to the report for each action.

    `lab.core` is the FulcrumCore simulator. `lab.admin` calls the simulator as an administrator.
    """
    (job,) = order_services_and_wait(lab, [f"latency-{uuid.uuid4().hex[:8]}"])
    seconds = {"create": _poll_to_report_s(lab, job)}
    for action in ("start", "stop"):
        lab.admin.request_action(job.service_id, action)
        wait_for_jobs(lab)
        with lab.core.server.store.lock:
            last_job = lab.core.server.store.last_job_by_service_id[job.service_id]
        seconds[action] = _poll_to_report_s(lab, last_job)
    return seconds


def _poll_to_report_s(lab: LabSystem, job: Job) -> float:
    """Return the time from the first poll after the job's creation to the arrival of the job's report.

    `lab.core.history` returns the requests that the FulcrumCore simulator has received.
    """
    polls = lab.core.history(method="GET", path_end="/jobs/pending")
    polled_at = next((poll["time"] for poll in polls if poll["time"] >= job.created_at), None)
    (report,) = lab.core.history(method="POST", path_end=f"/{job.id}/complete")
    if polled_at is None:
        raise MeasurementFailed(f"no poll before the report of job {job.id}")
    return float(report["time"] - polled_at)


def _tables(figures: Json) -> list[Table]:
    """Return the table. A ratio is "-" if the baseline was not measured.

    The baseline is the executor of an earlier commit.
    """
    rows = [
        (
            action,
            name,
            f"{by_action[action]['median_s']:.2f}",
            ratio_text(by_action[action]["median_s"], figures.get(BASELINE, {}).get(action, {}).get("median_s")),
        )
        for action in ACTIONS
        for name, by_action in figures.items()
    ]
    headings = ("action", "variant", "median s", "ratio to baseline")
    return [Table(title="One job alone, from the poll to the report", headings=headings, rows=rows)]


def _goals(figures: Json) -> list[Goal]:
    return [
        Goal(figure_name=f"one {action} alone", limit=limit, measured=figures[CURRENT][action]["median_s"], unit="s")
        for action, limit in MAX_LATENCY_S.items()
    ]


#: A part is one benchmark of the bench. `bench/__main__.py` runs this one.
PART = Part(
    help="time from the poll that finds a job to the job's report, for one create, start and stop",
    measure=measure,
    tables=_tables,
    goals=_goals,
)
