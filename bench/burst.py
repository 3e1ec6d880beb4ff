"""Measures a burst: many services are ordered at the same time. A burst ends when all create jobs have ended.

The bench compares three variants, which are ways to run playbooks: `plain` is ansible-runner alone, `baseline` is an
earlier version of the executor, and `current` is the executor of this checkout. A slot executes one playbook run at a
time. The burst of `plain` is smaller, runs without agent and FulcrumCore, and uses the number of slots with which
ansible-runner is fastest. An executor consists of an agent, the supervisor (the agent's parent process), the playbook
runs, and warm servers: processes that have imported Ansible and fork the runs.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from smith_lab.simulator.rows import Job
from smith_lab.system import LabSystem

from bench.baseline import BASELINE, CURRENT, PLAIN, Variant
from bench.labs import cpu_by_process, order_services_and_wait, running_lab_with_agent
from bench.measuring import measure_cpu_use, median, percentile
from bench.part import Bench, Goal, Part, Table, ratio_text, reversed_in_odd_rounds
from bench.playbooks import create_vms_for_warm_up, create_vms_in_parallel, set_clone_duration

Json = dict[str, Any]
#: The end of a heartbeat's URL path.
HEARTBEAT_PATH_END = "/agents/me/status"
#: The goal for a burst's duration applies only to a burst with this number of creates and this duration of a clone.
GOAL_CREATE_COUNT, GOAL_CLONE_S = 100, 10.0


def measure(bench: Bench) -> Json:
    """Return the figures for each variant: medians of all bursts.

    The spans (start and end of each job) are those of the burst with the median duration.
    `others_share` is the share of the machine's CPU time that processes outside of the bench used.
    """
    bursts: dict[str, list[Json]] = {variant.name: [] for variant in bench.variants}
    for number in range(bench.sizes.rounds):
        for variant in reversed_in_odd_rounds(bench.variants, number):
            run_burst = _run_burst_with_agent if variant.runs_executor else _run_burst_without_agent
            bursts[variant.name].append(run_burst(bench, variant))
    return {name: _median_figures(figures_of_bursts) for name, figures_of_bursts in bursts.items()}


def _run_burst_with_agent(bench: Bench, variant: Variant) -> Json:
    create_count = bench.sizes.burst_creates
    with running_lab_with_agent(variant, bench.folder, clone_s=bench.sizes.burst_clone_s) as lab:
        cpu_before = cpu_by_process(lab)
        with measure_cpu_use() as cpu_use:
            jobs = order_services_and_wait(lab, [f"burst-{number}" for number in range(create_count)])
        cpu_spent = cpu_by_process(lab) - cpu_before
        heartbeat_gap_s = max(_heartbeat_gaps_s(lab), default=0.0)
    # `vars` does not return the property `executor`, which is the sum of agent, supervisor and runs.
    cpu_s = {name: value / create_count for name, value in vars(cpu_spent).items()}
    return {
        **_figures(*_spans_and_durations(jobs), {**cpu_s, "executor": cpu_spent.executor / create_count}),
        "others_share": cpu_use.others_share,
        "heartbeat_gap_s": heartbeat_gap_s,
        "clone_s": bench.sizes.burst_clone_s,
    }


def _run_burst_without_agent(bench: Bench, variant: Variant) -> Json:
    """Measure a burst of create playbooks. One process runs several playbooks at a time, with ansible-runner."""
    create_count = bench.sizes.plain_creates
    process = next(process for process in bench.playbook_processes() if process.variant == variant)
    set_clone_duration(process.stand_in, 0)
    create_vms_for_warm_up([process], bench.sizes.warm_up_rounds)
    set_clone_duration(process.stand_in, bench.sizes.burst_clone_s)
    with measure_cpu_use() as cpu_use:
        measured = create_vms_in_parallel(process, create_count, bench.sizes.plain_slots)
    runs_cpu_s = measured.cpu_s / create_count
    # The table shows the key `executor` of each variant. Without an executor, it is the CPU time of the runs.
    cpu_s = {"runs": runs_cpu_s, "stand_in": measured.stand_in_cpu_s / create_count, "executor": runs_cpu_s}
    figures = _figures(measured.spans, [end for _start, end in measured.spans], cpu_s)
    return {**figures, "others_share": cpu_use.others_share}


def _spans_and_durations(jobs: list[Job]) -> tuple[list[tuple[float, float]], list[float]]:
    """Return two lists: the span of time in which each job had a slot, and the time from each job's order to its end.

    A span is the start and the end in seconds since the first order.
    """
    first_order_at = min(job.created_at for job in jobs)
    ended_at = [job.completed_at or 0.0 for job in jobs]
    spans = [
        ((job.claimed_at or 0.0) - first_order_at, end - first_order_at)
        for job, end in zip(jobs, ended_at, strict=True)
    ]
    return spans, [end - job.created_at for job, end in zip(jobs, ended_at, strict=True)]


def _figures(spans: list[tuple[float, float]], durations_s: list[float], cpu_s_per_job: Json) -> Json:
    """Return the figures of a burst. `most_busy_slots` is the maximum number of slots that were busy at once."""
    all_done_s = max(end for _start, end in spans)
    return {
        "creates": len(spans),
        "all_done_s": all_done_s,
        "jobs_per_min": 60 * len(spans) / all_done_s,
        "cpu_s_per_job": cpu_s_per_job,
        "job_median_s": median(durations_s),
        "job_p95_s": percentile(durations_s, 0.95),
        "most_busy_slots": max(busy_count for _time, busy_count in busy_slot_counts(spans)),
        "spans": sorted(spans),
    }


def busy_slot_counts(spans: list[tuple[float, float]]) -> list[tuple[float, int]]:
    """Return the time of each start and each end of a job, and the number of busy slots after it."""
    changes = sorted([(start, 1) for start, _end in spans] + [(end, -1) for _start, end in spans])
    busy_count, points = 0, []
    for time, change in changes:
        busy_count += change
        points.append((time, busy_count))
    return points


def _heartbeat_gaps_s(lab: LabSystem) -> list[float]:
    """Return the times between the heartbeats that the FulcrumCore simulator, `lab.core`, has received."""
    requests = [request for request in lab.core.history(method="PUT") if request["path"].endswith(HEARTBEAT_PATH_END)]
    return [later["time"] - earlier["time"] for earlier, later in pairwise(requests)]


def _median_figures(bursts: list[Json]) -> Json:
    """Return the figures of the burst with the median duration, but replace each number by the median of all bursts."""
    bursts_by_duration = sorted(bursts, key=lambda burst: burst["all_done_s"])
    median_burst = bursts_by_duration[len(bursts) // 2]
    numbers = {
        key: median([burst[key] for burst in bursts]) for key, value in median_burst.items() if _is_number(value)
    }
    cpu_s = {name: median([burst["cpu_s_per_job"][name] for burst in bursts]) for name in median_burst["cpu_s_per_job"]}
    figures_by_burst = [{key: burst[key] for key in ("all_done_s", "others_share")} for burst in bursts]
    return {**median_burst, **numbers, "cpu_s_per_job": cpu_s, "figures_by_burst": figures_by_burst}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _tables(figures: Json) -> list[Table]:
    """Return the tables. A ratio is "-" if `plain` or `baseline` was not measured."""
    rows = []
    for name, burst in figures.items():
        reference_rates = [figures.get(reference_name, {}).get("jobs_per_min") for reference_name in (PLAIN, BASELINE)]
        rows.append(
            (
                name,
                f"{burst['creates']:.0f}",
                f"{burst['most_busy_slots']:.0f}",
                f"{burst['all_done_s']:.1f}",
                f"{burst['jobs_per_min']:.0f}",
                *(ratio_text(burst["jobs_per_min"], rate) for rate in reference_rates),
                f"{burst['cpu_s_per_job']['executor']:.2f}",
                f"{burst['cpu_s_per_job']['stand_in']:.2f}",
                f"{burst['job_median_s']:.1f}",
                f"{burst['job_p95_s']:.1f}",
                f"{burst['heartbeat_gap_s']:.1f}" if "heartbeat_gap_s" in burst else "-",
                f"{burst['others_share']:.0%}",
            )
        )
    headings = (
        *(
            "variant",
            "creates",
            "max. busy slots",
            "s until all were done",
            "jobs/min",
            "ratio to plain",
            "ratio to baseline",
        ),
        *(
            "CPU-s per job",
            "CPU-s of the stand-in per job (not part of CPU-s per job)",
            "median job duration (s)",
            "p95 of job durations (s)",
            "longest heartbeat gap s",
            "CPU used by other processes",
        ),
    )
    return [Table(title="A burst of creates", headings=headings, rows=rows), _cpu_table(figures)]


def _cpu_table(figures: Json) -> Table:
    names = ("agent", "supervisor", "runs", "stand_in", "simulator")
    rows = [
        (variant, *(f"{burst['cpu_s_per_job'][name]:.3f}" if name in burst["cpu_s_per_job"] else "-" for name in names))
        for variant, burst in figures.items()
    ]
    headings = ("variant", "agent", "supervisor", "playbook runs, warm servers", "stand-in", "simulator and bench")
    return Table(title="CPU-seconds per job of the burst, by process", headings=headings, rows=rows)


def _goals(figures: Json) -> list[Goal]:
    current, goals = figures[CURRENT], []
    if (current["creates"], current["clone_s"]) == (GOAL_CREATE_COUNT, GOAL_CLONE_S):
        others_text = f"other processes used {current['others_share']:.0%} of the CPU"
        text = f"{GOAL_CREATE_COUNT} creates whose clones take {GOAL_CLONE_S:g} s ({others_text})"
        goals.append(Goal(figure_name=text, limit=35, measured=current["all_done_s"], unit="s"))
    if BASELINE in figures:
        ratio_to_baseline = current["all_done_s"] / figures[BASELINE]["all_done_s"]
        ratio_to_plain = current["jobs_per_min"] / figures[PLAIN]["jobs_per_min"]
        goals += [
            Goal(figure_name="time of the burst, ratio to baseline", limit=0.6, measured=ratio_to_baseline),
            Goal(
                figure_name="jobs per minute in the burst, ratio to plain",
                limit=7,
                measured=ratio_to_plain,
                is_minimum=True,
            ),
        ]
    return goals


#: A part is one benchmark of the bench. `bench/__main__.py` runs this one.
PART = Part(help="a burst of creates whose clones take several seconds", measure=measure, tables=_tables, goals=_goals)
