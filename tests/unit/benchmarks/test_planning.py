"""The calculation of docs/planning.md, which projects counts from a few agents to more agents and VMs.

A node is one agent process, as in bench/planning.py.
"""

from __future__ import annotations

from typing import Any

import pytest

from bench import planning, scale
from bench.nodes import KINDS


def figures_of(per_s: float, per_job: float) -> dict[str, object]:
    return {
        "per_s": dict.fromkeys(KINDS, per_s),
        "per_job": dict.fromkeys(KINDS, per_job),
        "posts_per_vm": 6.0,
    }


FIGURES = {"1": figures_of(5.0, 40.0), "3": figures_of(9.0, 42.0)}


def test_each_further_node_adds_as_much_as_each_measured_node() -> None:
    assert [planning.idle_per_s(FIGURES, "statements", nodes) for nodes in (1, 3, 100)] == [5.0, 9.0, 203.0]
    assert planning.idle_per_s({"2": FIGURES["1"]}, "statements", 50) == 5.0, (
        "with one measured number of nodes there is no increase to project"
    )


def test_the_load_is_the_sum_of_idle_nodes_and_the_jobs_of_the_busiest_hour() -> None:
    vms = round(7 * 86_400 / planning.BUSY_HOUR_FACTOR)  # a job in each second
    load = planning.load_in_busiest_hour(FIGURES, 3, vms)
    assert load.jobs_per_s == pytest.approx(1.0, rel=0.01)
    assert load.statements_per_s == pytest.approx(9 + 42, rel=0.01)
    assert load.fulcrum_calls_per_s == pytest.approx(3 * (9 + 42), rel=0.01)
    assert load.metric_posts_per_s == pytest.approx(vms * 6 / 60)


def test_a_round_of_metrics_takes_longer_than_its_interval_if_there_are_too_many_vms() -> None:
    assert planning.load_in_busiest_hour(FIGURES, 1, 100).metrics_round_s == planning.METRICS_INTERVAL_S
    assert planning.load_in_busiest_hour(FIGURES, 1, 100_000).metrics_round_s == pytest.approx(
        600_000 / (planning.MAX_ENTRIES_PER_S * planning.SENDING_SHARE_OF_INTERVAL)
    )


def test_the_table_has_a_row_for_each_scenario() -> None:
    (table,) = planning.planning_tables(FIGURES)
    assert len(table.rows) == len(planning.SCENARIOS)
    assert all(len(row) == len(table.headings) for row in table.rows)


def scale_figures(own_share: float) -> dict[str, Any]:
    figures = {"creates": 24, "clone_s": 10.0, "own_share": own_share, "others_share": 0.1}
    return {
        "1": {**figures, "jobs_per_min": 20.0, "statements_per_job": 50.0},
        "3": {**figures, "jobs_per_min": 57.0, "statements_per_job": 52.0},
    }


def test_the_rate_of_several_agents_is_compared_with_as_many_times_the_rate_of_one() -> None:
    assert scale.ratio_to_linear_growth(scale_figures(0.3), "3") == pytest.approx(0.95)
    assert [goal.is_reached for goal in scale.PART.goals(scale_figures(0.3))] == [True, True]


def test_there_is_no_goal_for_a_rate_that_the_cores_have_limited() -> None:
    (goal,) = scale.PART.goals(scale_figures(0.8))
    assert goal.figure_name == "statements per job with 3 agents, ratio to one agent"
