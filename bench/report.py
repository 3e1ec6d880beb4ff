"""Shows the results of the bench (the benchmarks): tables on the terminal; tables and plots in two pages of docs/.

The pages are docs/performance.md and docs/planning.md. The bench consists of parts: each is one benchmark, such as
`burst`. Many parts compare variants: plain ansible-runner, the executor of an earlier commit, and this checkout's
executor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import rich.table
from rich.console import Console

from bench import plots
from bench.measuring import ROOT
from bench.part import Part, Table

Json = dict[str, Any]
PERFORMANCE_PAGE = ROOT / "docs" / "performance.md"
PLANNING_PAGE = ROOT / "docs" / "planning.md"
#: The parts whose tables are on PLANNING_PAGE. All other tables are on PERFORMANCE_PAGE.
PLANNING_PARTS = ("nodes", "scale")
#: The lines of a page before and after the generated tables and plots.
PAGE_BEGIN, PAGE_END = "<!-- figures: generated -->", "<!-- end -->"
#: A machine is called quiet if other processes use at most this share of its CPU time.
MAX_QUIET_SHARE = 0.05


def show(results: Json, parts: Mapping[str, Part], console: Console) -> None:
    """Print the goals, the tables of each part, and how quiet the machine was.

    `results["parts"]` has the figures of each measured part. `parts` defines how the figures are shown.
    """
    for table in _all_tables(results, parts):
        console_table = rich.table.Table(*table.headings, title=table.title, title_justify="left")
        for column in console_table.columns[1:]:
            column.justify = "right"
        for row in table.rows:
            console_table.add_row(*row)
        console.print(console_table)


def write_docs_pages(all_results: Sequence[Json], parts: Mapping[str, Part]) -> None:
    """Replace the generated tables of docs/performance.md and docs/planning.md, and the plots of docs/performance.md.

    `all_results` are the results of one or more runs of the bench. If several runs measured a part, the page shows the
    part's figures of the last such run. A page does not change if no run measured a part of this page.
    """
    result_by_part = {name: result for results in all_results for name, result in results["parts"].items()}
    for page in (PERFORMANCE_PAGE, PLANNING_PAGE):
        names = [
            name for name in parts if name in result_by_part and (name in PLANNING_PARTS) == (page != PERFORMANCE_PAGE)
        ]
        if names:
            results = {**all_results[-1], "parts": {name: result_by_part[name] for name in names}}
            _replace_tables_and_plots(page, results, parts)


def _replace_tables_and_plots(page: Path, results: Json, parts: Mapping[str, Part]) -> None:
    text = page.read_text(encoding="utf-8")
    if PAGE_BEGIN not in text:
        raise ValueError(f"{page.name} has no line {PAGE_BEGIN}")
    plot_files = plots.draw_plots(results, page.with_suffix("")) if page == PERFORMANCE_PAGE else []
    before, _begin, after_begin = text.partition(PAGE_BEGIN)
    _old, _end, after = after_begin.partition(PAGE_END)
    images = [f"![{description}](performance/{file.name})" for file, description in plot_files]
    tables = _all_tables(results, parts) if page == PERFORMANCE_PAGE else _tables_of_parts(results, parts)
    generated = "\n\n".join([_machine_line(results["machine"]), *map(_as_markdown, tables), *images])
    page.write_text(f"{before}{PAGE_BEGIN}\n\n{generated}\n\n{PAGE_END}{after}", encoding="utf-8")


def _all_tables(results: Json, parts: Mapping[str, Part]) -> list[Table]:
    measured_parts = [(parts[name], name, result) for name, result in results["parts"].items()]
    all_tables = [_goals_table(measured_parts), *_tables_of_parts(results, parts), _quietness_table(results["parts"])]
    return [table for table in all_tables if table.rows]


def _tables_of_parts(results: Json, parts: Mapping[str, Part]) -> list[Table]:
    return [table for name, result in results["parts"].items() for table in parts[name].tables(result["figures"])]


def _goals_table(measured_parts: Iterable[tuple[Part, str, Json]]) -> Table:
    """Return a table with each goal, the measured figure, and whether the goal is reached."""
    rows = []
    for part, name, result in measured_parts:
        for goal in part.goals(result["figures"]):
            limit = f"at {'least' if goal.is_minimum else 'most'} {goal.limit:g} {goal.unit}".rstrip()
            measured = f"{goal.measured:.3g} {goal.unit}".rstrip()
            rows.append((goal.figure_name, name, limit, measured, "yes" if goal.is_reached else "no"))
    return Table(title="Goals", headings=("figure", "part", "goal", "measured", "reached"), rows=rows)


def _quietness_table(results_by_part: Json) -> Table:
    rows = [
        (
            name,
            f"{result['took_s']}",
            f"{result['own_cpu_s']:.0f}",
            f"{result['others_share']:.0%}",
            "yes" if result["others_share"] <= MAX_QUIET_SHARE else "no: only ratios between variants are reliable",
        )
        for name, result in results_by_part.items()
    ]
    return Table(
        title="How quiet the machine was",
        headings=("part", "duration s", "CPU-s of the bench", "CPU used by other processes", "quiet"),
        rows=rows,
    )


def _machine_line(machine: Json) -> str:
    packages = machine["packages"]
    return (
        f"Measured at {machine['at']} with commit `{machine['commit']}`: {machine['cores']} cores ({machine['cpu']}), "
        f"Python {machine['python']}, ansible-core {packages['ansible-core']}."
    )


def _as_markdown(table: Table) -> str:
    lines = [
        f"**{table.title}**",
        "",
        "| " + " | ".join(table.headings) + " |",
        "|" + "---|" * len(table.headings),
        *("| " + " | ".join(row) + " |" for row in table.rows),
    ]
    return "\n".join(lines)
