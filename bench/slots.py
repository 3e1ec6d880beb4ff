"""Measures creates (runs of create.yml) in parallel slots, without the agent: rate, CPU time, and memory of a slot.

Each slot runs one create at a time. The variants are installations that run playbooks: plain (ansible-runner alone),
baseline (the playbook runner of an earlier commit) and current (the playbook runner of this checkout). For each
variant, one playbook process starts the runs of the variant. All playbook processes use the same stand-in for Proxmox.
"""

from __future__ import annotations

from typing import Any

from bench.baseline import BASELINE, CURRENT, PLAIN
from bench.measuring import median, sample_peak_memory
from bench.part import Bench, Goal, Part, Table, ratio_text, reversed_in_odd_rounds
from bench.playbooks import (
    BatchCosts,
    PlaybookProcess,
    create_vms_for_warm_up,
    create_vms_in_parallel,
    set_clone_duration,
)
from executor.processes.memory import process_tree_memory_mib

Json = dict[str, Any]


def measure_rate(bench: Bench) -> Json:
    """Return for each variant the rate and the CPU time of creates, with clones that take no time.

    In the keys of the returned object, `job` means a create.
    """
    creates, slots = bench.sizes.slot_creates, bench.sizes.slots
    processes = bench.playbook_processes()
    set_clone_duration(processes[0].stand_in, 0)
    create_vms_for_warm_up(processes, bench.sizes.warm_up_rounds)
    costs_by_variant: dict[str, list[BatchCosts]] = {process.variant.name: [] for process in processes}
    for number in range(bench.sizes.rounds):
        for process in reversed_in_odd_rounds(processes, number):
            costs_by_variant[process.variant.name].append(create_vms_in_parallel(process, creates, slots))
    return {
        name: {
            "slots": slots,
            "creates": creates,
            "jobs_per_min": median([60 * creates / costs.wall_s for costs in all_costs]),
            "cpu_s_per_job": median([costs.cpu_s / creates for costs in all_costs]),
            "stand_in_cpu_s_per_job": median([costs.stand_in_cpu_s / creates for costs in all_costs]),
        }
        for name, all_costs in costs_by_variant.items()
    }


def measure_memory(bench: Bench) -> Json:
    """Return for each variant the memory of a slot: (memory with all slots busy - idle memory) / number of slots."""
    processes = bench.playbook_processes()
    set_clone_duration(processes[0].stand_in, 0)
    create_vms_for_warm_up(processes, bench.sizes.warm_up_rounds)
    # Each clone takes `memory_clone_s` seconds, so that all slots are busy at the same time.
    set_clone_duration(processes[0].stand_in, bench.sizes.memory_clone_s)
    samples: dict[str, list[tuple[float, float]]] = {process.variant.name: [] for process in processes}
    for number in range(bench.sizes.rounds):
        for process in reversed_in_odd_rounds(processes, number):
            samples[process.variant.name].append(_idle_and_peak_mib(process, bench.sizes.slots))
    return {
        name: {
            "slots": bench.sizes.slots,
            "idle_mib": median([idle for idle, _peak in pairs]),
            "mib_per_slot": median([(peak - idle) / bench.sizes.slots for idle, peak in pairs]),
            # the idle memory plus the memory of all slots
            "all_mib": median([peak for _idle, peak in pairs]),
        }
        for name, pairs in samples.items()
    }


def _idle_and_peak_mib(process: PlaybookProcess, slots: int) -> tuple[float, float]:
    """Return the memory before a batch, and the maximum in the batch.

    The memory is that of the process's descendants, without the process itself. The descendants are the playbook runs
    and, except in the variant plain, warm servers: processes that have imported Ansible and fork the playbook runs.
    """
    idle_mib = process_tree_memory_mib(process.pid, include_root_process=False)
    with sample_peak_memory(process.pid) as peak:
        create_vms_in_parallel(process, slots, slots)
    return idle_mib, peak.mib


def _rate_tables(figures: Json) -> list[Table]:
    rows = [
        (
            name,
            f"{costs['creates']} in {costs['slots']} slots",
            f"{costs['jobs_per_min']:.0f}",
            *(
                ratio_text(costs["jobs_per_min"], figures.get(base, {}).get("jobs_per_min"))
                for base in (PLAIN, BASELINE)
            ),
            f"{costs['cpu_s_per_job']:.3f}",
            *(
                ratio_text(costs["cpu_s_per_job"], figures.get(base, {}).get("cpu_s_per_job"))
                for base in (PLAIN, BASELINE)
            ),
            f"{costs['stand_in_cpu_s_per_job']:.3f}",
        )
        for name, costs in figures.items()
    ]
    headings = (
        *(
            "variant",
            "creates",
            "creates/min",
            "ratio to plain",
            "ratio to baseline",
            "CPU-s per create",
            "ratio to plain",
            "ratio to baseline",
        ),
        "CPU-s of the stand-in per create",
    )
    return [Table(title="Parallel creates with instant clones, without the agent", headings=headings, rows=rows)]


def _rate_goals(figures: Json) -> list[Goal]:
    if PLAIN not in figures:
        return []
    measured = figures[CURRENT]["jobs_per_min"] / figures[PLAIN]["jobs_per_min"]
    text = f"creates per minute in {figures[PLAIN]['slots']} slots, ratio to plain"
    return [Goal(figure_name=text, limit=10, measured=measured, is_minimum=True)]


def _memory_tables(figures: Json) -> list[Table]:
    rows = [
        (name, str(memory["slots"]), *(f"{memory[key]:.0f}" for key in ("idle_mib", "mib_per_slot", "all_mib")))
        for name, memory in figures.items()
    ]
    headings = ("variant", "slots", "MiB when idle", "MiB per slot", "MiB with all slots busy")
    return [Table(title="Memory of parallel creates", headings=headings, rows=rows)]


def _memory_goals(figures: Json) -> list[Goal]:
    goals = [Goal(figure_name="memory of a slot", limit=34, measured=figures[CURRENT]["mib_per_slot"], unit="MiB")]
    if PLAIN in figures:
        measured = figures[CURRENT]["all_mib"] / figures[PLAIN]["all_mib"]
        goals.append(Goal(figure_name="memory with all slots busy, ratio to plain", limit=1, measured=measured))
    return goals


#: A part is one benchmark of the bench. `bench/__main__.py` runs the two parts of this module.
RATE_PART = Part(
    help="rate and CPU of parallel creates, without the agent",
    measure=measure_rate,
    tables=_rate_tables,
    goals=_rate_goals,
)
MEMORY_PART = Part(help="memory of a slot", measure=measure_memory, tables=_memory_tables, goals=_memory_goals)
