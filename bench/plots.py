"""Draws plots of the bench's results if matplotlib is installed.

`python -m bench.plots RESULTS.json FOLDER` draws the plots of one results file. The plots in docs/performance.md were
drawn this way. The results of the workload `runs` are grouped by mode: plain, cold and warm (see bench/one_mode.py).
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

#: The actions whose CPU time is plotted.
ACTIONS = ("create", "start", "stop")
#: The width of a bar in the plot of the CPU time. On the x axis, the group of bars of each action begins at a whole
#: number: 0, 1 or 2. So the width 0.25 leaves space between two groups of three bars.
BAR_WIDTH = 0.25


def draw(results: dict[str, Any], folder: Path, name_prefix: str = "") -> list[Path]:
    """Write the plots as SVG files whose names begin with `name_prefix`, and return their paths.

    Returns an empty list if matplotlib is not installed.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415  matplotlib is optional
    except ImportError:
        return []
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "agent-smith"  # a constant, so that the same results give the same file
    import matplotlib.pyplot as plt  # noqa: PLC0415  matplotlib is optional

    files = []
    functions_by_name = {
        "cpu": _draw_cpu,
        "memory": _draw_memory,
        "bursts": _draw_bursts,
        "rows": _draw_rows,
        "soak": _draw_soak,
    }
    for name, draw_plot in functions_by_name.items():
        figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        with contextlib.suppress(KeyError):  # raised when the results lack the workload of the plot
            draw_plot(results, axes)
            file = folder / f"{name_prefix}{name}.svg"
            figure.savefig(file, metadata={"Date": None})
            files.append(file)
        plt.close(figure)
    return files


def _draw_cpu(results: dict[str, Any], axes: Any) -> None:
    for number, (mode, figures) in enumerate(results["runs"].items()):
        positions = [index + number * BAR_WIDTH for index in range(len(ACTIONS))]
        cpu_s = [figures["actions"][action]["cpu_s"] for action in ACTIONS]
        axes.bar(positions, cpu_s, width=BAR_WIDTH, label=mode)
    # The bar of the second of the three modes is in the middle.
    middle_bar_positions = [index + BAR_WIDTH for index in range(len(ACTIONS))]
    axes.set_xticks(middle_bar_positions, ACTIONS)
    axes.set_ylabel("CPU-seconds per job")
    axes.legend()


def _draw_memory(results: dict[str, Any], axes: Any) -> None:
    figures_by_mode = results["runs"]
    memory_mib = [figures["burst"]["mib_per_slot"] for figures in figures_by_mode.values()]
    axes.bar(list(figures_by_mode), memory_mib, width=0.5)
    axes.set_ylabel("MiB per running job")


def _draw_bursts(results: dict[str, Any], axes: Any) -> None:
    bursts = results["bursts"]
    labels = [f"{burst['services']} creates, {burst['clone_s']:g} s clones\n{burst['label']}" for burst in bursts]
    axes.barh(labels, [burst["jobs_per_min"] for burst in bursts])
    axes.tick_params(axis="y", labelsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("jobs per minute")


def _draw_rows(results: dict[str, Any], axes: Any) -> None:
    """Plot the durations of the job queue's operations over the number of rows in the table of jobs."""
    for database, figures_by_row_count in results["rows"].items():
        for operation in ("submit", "claim", "finish"):
            row_counts = [int(row_count) for row_count in figures_by_row_count]
            p99_ms = [figures[operation]["p99_ms"] for figures in figures_by_row_count.values()]
            axes.plot(row_counts, p99_ms, marker="o", label=f"{operation}, {database}")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("rows in the table of jobs")
    axes.set_ylabel("p99, ms")
    axes.legend()


def _draw_soak(results: dict[str, Any], axes: Any) -> None:
    samples = results["soak"]["samples"]
    runs_done = [sample["runs_done"] for sample in samples]
    for name, label in (
        ("own_mib", "agent, MiB"),
        ("servers_mib", "warm servers, MiB"),
        ("descriptors", "descriptors"),
        ("processes", "processes"),
    ):
        axes.plot(runs_done, [sample[name] for sample in samples], label=label)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("warm runs")
    axes.legend()


if __name__ == "__main__":
    results_file, folder_path = sys.argv[1:]
    all_results = json.loads(Path(results_file).read_text(encoding="utf-8"))
    for drawn_file in draw(all_results, Path(folder_path)):
        sys.stdout.write(f"{drawn_file}\n")
