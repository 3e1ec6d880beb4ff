"""Measures the CPU time and the wall time of a playbook run of each action, one run at a time, without the agent.

It compares three variants: `plain` (ansible-runner), `current` (the executor of this checkout) and `baseline` (an
earlier version of the executor). Of an executor, only the code that runs playbooks is used.
"""

from __future__ import annotations

from typing import Any

from bench.baseline import BASELINE, CURRENT, PLAIN
from bench.measuring import median
from bench.part import Bench, Goal, Part, Table, ratio_text, reversed_in_odd_rounds
from bench.playbooks import BatchCosts, PlaybookProcess, new_vm, set_clone_duration

Json = dict[str, Any]
#: The actions, in the order in which they run for each VM.
ACTIONS = ("create", "update", "start", "stop", "delete")
#: The members of the playbooks' variable `vm` that the update changes.
UPDATED_MEMBERS = {"cores": 4, "memory_mib": 4096}
#: Goals: the maximum CPU time of an action, as a ratio to the CPU time with plain ansible-runner. Two maxima are
#: higher: an update compares the VM's whole configuration with the requested one, and a delete sends more requests to
#: check the VM.
MAX_RATIOS_TO_PLAIN = {"create": 0.08, "start": 0.08, "stop": 0.08, "update": 0.12, "delete": 0.12}


def measure(bench: Bench) -> Json:
    """Return the median costs of each action, for each variant.

    In each round, every variant runs all actions for a VM of its own. All variants run one action before any variant
    runs the next action. Every second round has the reverse order of variants (`reversed_in_odd_rounds`). Each variant
    has a process that runs its playbooks. All processes use one Proxmox stand-in, in which Proxmox tasks take no time.
    """
    processes = bench.playbook_processes()
    set_clone_duration(processes[0].stand_in, 0)  # with 0, all Proxmox tasks take no time, not only clones
    for _ in range(bench.sizes.warm_up_rounds):
        _run_round(processes)
    rounds = [_run_round(reversed_in_odd_rounds(processes, number)) for number in range(bench.sizes.rounds)]
    return {
        process.variant.name: {
            action: _medians([costs_of_round[process.variant.name, action] for costs_of_round in rounds])
            for action in ACTIONS
        }
        for process in processes
    }


def _run_round(processes: list[PlaybookProcess]) -> dict[tuple[str, str], BatchCosts]:
    """Run all actions with every variant; return the costs of each run, by variant and action.

    `BatchCosts` contains the costs of a batch of runs. Here, each batch is one run.
    """
    vms = {process.variant.name: new_vm() for process in processes}
    costs = {}
    for action in ACTIONS:
        for process in processes:
            name = process.variant.name
            if action == "update":
                vms[name] |= UPDATED_MEMBERS
            costs[name, action] = process.run(action, vms[name])
    return costs


def _medians(all_costs: list[BatchCosts]) -> Json:
    return {
        "cpu_s": median([costs.cpu_s for costs in all_costs]),
        "wall_s": median([costs.wall_s for costs in all_costs]),
        "stand_in_cpu_s": median([costs.stand_in_cpu_s for costs in all_costs]),
        "cpu_s_by_round": [costs.cpu_s for costs in all_costs],
    }


def _tables(figures: Json) -> list[Table]:
    """Return the table. A ratio is "-" if the variant `plain` or `baseline` was not measured."""
    rows = []
    for action in ACTIONS:
        for name, costs_by_action in figures.items():
            costs = costs_by_action[action]
            rows.append(
                (
                    action,
                    name,
                    f"{costs['cpu_s']:.3f}",
                    *(
                        ratio_text(costs["cpu_s"], _cpu_s(figures, reference_name, action))
                        for reference_name in (PLAIN, BASELINE)
                    ),
                    f"{costs['stand_in_cpu_s']:.3f}",
                    f"{costs['wall_s']:.2f}",
                )
            )
    headings = (
        "action",
        "variant",
        "CPU-s",
        "ratio to plain",
        "ratio to baseline",
        "CPU-s of the stand-in (not included in CPU-s)",
        "wall time s",
    )
    return [
        Table(title="Create, update, start, stop, delete: one playbook run at a time", headings=headings, rows=rows)
    ]


def _cpu_s(figures: Json, variant: str, action: str) -> float | None:
    return float(figures[variant][action]["cpu_s"]) if variant in figures else None


def _goals(figures: Json) -> list[Goal]:
    """Return the goals. Each limit is a maximum."""
    if PLAIN not in figures:
        return []
    return [
        Goal(
            figure_name=f"CPU of {action}, ratio to plain",
            limit=limit,
            measured=figures[CURRENT][action]["cpu_s"] / figures[PLAIN][action]["cpu_s"],
        )
        for action, limit in MAX_RATIOS_TO_PLAIN.items()
    ]


#: A part is one benchmark of the bench. `bench/__main__.py` runs this one.
PART = Part(
    help="CPU of create, update, start, stop and delete, without the agent",
    measure=measure,
    tables=_tables,
    goals=_goals,
)
