"""What the benchmarks compute from their measurements, and how they show it."""

from __future__ import annotations

import argparse
import ast
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from bench import playbook_process, plots, report, sizes
from bench.__main__ import PARTS, _print_too_high_figures
from bench.actions import ACTIONS, MAX_RATIOS_TO_PLAIN
from bench.burst import busy_slot_counts
from bench.measuring import measure_cpu_use, tree_cpu_s
from bench.part import Goal, reversed_in_odd_rounds

BURN_CPU = "import time\nwhile time.process_time() < 0.3: pass"
SPANS = [(0.5, 11.0), (0.6, 12.0), (11.0, 22.5)]


def actions_figures(**cpu_s: float) -> dict[str, Any]:
    """Return the figures of the benchmark part `actions`: every action of a variant takes the same CPU time."""
    costs = {name: {"cpu_s": value, "wall_s": 1.0, "stand_in_cpu_s": 0.1} for name, value in cpu_s.items()}
    return {name: dict.fromkeys(ACTIONS, costs[name]) for name in cpu_s}


def results(**figures: Any) -> dict[str, Any]:
    """Return results that contain the figures of these benchmark parts."""
    machine = {"at": "now", "commit": "c", "cores": 2, "cpu": "x", "python": "3", "packages": {"ansible-core": "2"}}
    parts = {
        name: {"figures": value, "others_share": 0.3, "own_cpu_s": 9, "took_s": 7} for name, value in figures.items()
    }
    return {"machine": machine, "parts": parts}


def burst_figures() -> dict[str, Any]:
    cpu_s = {"runs": 0.3, "agent": 0.1, "supervisor": 0.0, "stand_in": 0.1, "simulator": 0.1, "executor": 0.4}
    burst = {"creates": 3, "clone_s": 10.0, "most_busy_slots": 2, "all_done_s": 22.5, "jobs_per_min": 8.0}
    burst |= {"cpu_s_per_job": cpu_s, "job_median_s": 11.0, "job_p95_s": 12.0, "others_share": 0.3, "spans": SPANS}
    return {"plain": burst, "baseline": burst, "current": burst}


def test_the_cpu_time_of_an_ended_child_counts_before_and_after_it_is_reaped() -> None:
    before_s = tree_cpu_s(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", BURN_CPU])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # the child has ended, and is a zombie
    assert tree_cpu_s(os.getpid()) - before_s >= 0.25
    child.wait()
    assert tree_cpu_s(os.getpid()) - before_s >= 0.25


def test_the_share_of_other_processes_is_between_0_and_1() -> None:
    with measure_cpu_use() as use:
        subprocess.run([sys.executable, "-c", BURN_CPU], check=True)
    assert 0 <= use.others_share <= 1


def test_every_second_round_runs_the_variants_in_reverse() -> None:
    assert [reversed_in_odd_rounds(["a", "b"], number) for number in range(3)] == [["a", "b"], ["b", "a"], ["a", "b"]]


def test_a_job_occupies_a_slot_from_its_start_to_its_end() -> None:
    assert busy_slot_counts(SPANS) == [(0.5, 1), (0.6, 2), (11.0, 1), (11.0, 2), (12.0, 1), (22.5, 0)]


@pytest.mark.parametrize(("is_minimum", "expected"), [(False, [True, True, False]), (True, [False, True, True])])
def test_a_goal_is_a_maximum_or_a_minimum(is_minimum: bool, expected: list[bool]) -> None:
    goals = [Goal(figure_name="x", limit=10, measured=measured, is_minimum=is_minimum) for measured in (9, 10, 11)]
    assert [goal.is_reached for goal in goals] == expected


def test_goals_that_compare_with_the_variant_plain_are_left_out_without_it() -> None:
    part = PARTS["actions"]
    goals = part.goals(actions_figures(plain=4.0, baseline=0.6, current=0.4))
    assert [(goal.limit, goal.measured) for goal in goals] == [(limit, 0.1) for limit in MAX_RATIOS_TO_PLAIN.values()]
    assert part.goals(actions_figures(current=0.4)) == []


@pytest.mark.parametrize(("current_s", "is_too_high"), [(0.4, False), (4.0, True)])
def test_a_quick_benchmark_fails_if_an_action_costs_as_much_as_in_the_variant_plain(
    current_s: float, is_too_high: bool
) -> None:
    console = Console(file=io.StringIO())
    assert (
        _print_too_high_figures(results(actions=actions_figures(plain=4.0, current=current_s)), console) is is_too_high
    )


@pytest.mark.parametrize(("growth", "is_too_high"), [(1.4, False), (10.0, True)])
def test_a_quick_benchmark_fails_if_a_parser_takes_quadratic_time(growth: float, is_too_high: bool) -> None:
    console = Console(file=io.StringIO())
    figures = {"marker": {"cpu_s": {"10000": 0.1, "100000": growth}, "growths": [growth]}}
    assert _print_too_high_figures(results(growth=figures), console) is is_too_high
    for table in PARTS["growth"].tables(figures):
        assert {len(row) for row in table.rows} == {len(table.headings)}


@pytest.mark.parametrize("variants", [("plain", "baseline", "current"), ("current",)])
def test_tables_are_complete_with_one_variant_and_with_all_variants(variants: tuple[str, ...]) -> None:
    figures = {name: value for name, value in burst_figures().items() if name in variants}
    for table in [*PARTS["burst"].tables(figures), *PARTS["actions"].tables(actions_figures(current=0.4))]:
        assert {len(row) for row in table.rows} == {len(table.headings)}


def test_each_benchmark_size_is_an_option_with_a_value_for_quick_benchmarks() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    sizes.add_options(parser)
    assert sizes.from_arguments(parser.parse_args([])) == sizes.Sizes()
    chosen = sizes.from_arguments(parser.parse_args(["--quick", "--rounds", "3", "--vm-counts", "5", "6"]))
    assert (chosen.rounds, chosen.vm_counts, chosen.burst_creates) == (3, (5, 6), 3)


def test_the_plots_are_valid_and_contain_each_variant(tmp_path: Path) -> None:
    files = plots.draw_plots(results(burst=burst_figures()), tmp_path)
    assert [file.name for file, _description in files] == ["burst.svg", "slots.svg", "processes.svg"]
    for file, _description in files:
        texts = {element.text for element in ElementTree.fromstring(file.read_text()).iter()}  # noqa: S314
        creates = "" if file.stem == "processes" else ", 3 creates"
        assert {f"{variant}{creates}" for variant in ("plain", "baseline", "current")} <= texts


def test_the_performance_page_gets_the_figures_between_its_marks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"before\n{report.PAGE_BEGIN}\nold\n{report.PAGE_END}\nafter\n")
    monkeypatch.setattr(report, "PERFORMANCE_PAGE", page)
    earlier = results(actions=actions_figures(plain=4.0, current=0.4), burst=burst_figures())
    later = results(actions=actions_figures(plain=4.0, current=0.2))
    report.write_docs_pages([earlier, later], PARTS)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith(f"{report.PAGE_END}\nafter\n")
    assert "old" not in text.split(report.PAGE_BEGIN)[1].split("\n")
    assert "| CPU of create, ratio to plain | actions | at most 0.08 | 0.05 | yes |" in text
    assert "![Busy slots over the time of the burst](performance/slots.svg)" in text
    assert "| actions | 7 | 9 | 30% | no: only ratios between variants are reliable |" in text


def test_the_performance_page_of_this_checkout_has_the_marks() -> None:
    text = report.PERFORMANCE_PAGE.read_text(encoding="utf-8")
    assert 0 < text.index(report.PAGE_BEGIN) < text.index(report.PAGE_END)


def test_the_module_playbook_process_imports_only_the_standard_library() -> None:
    tree = ast.parse(Path(playbook_process.__file__).read_text(encoding="utf-8"))
    imported = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert {str(name).split(".")[0] for name in imported} <= sys.stdlib_module_names


def test_the_goal_for_the_story_limits_its_share_of_the_cpu_time_of_a_job() -> None:
    figures = {"job_cpu_s": 0.5, "events": 12, "events_cpu_s": 0.001, "write_cpu_s": 0.004}
    (goal,) = PARTS["story"].goals(figures)
    assert (goal.measured, goal.limit, goal.is_reached) == (pytest.approx(1.0), 2.0, True)
    assert PARTS["story"].tables(figures)[0].rows[0][-1] == "1.00%"
