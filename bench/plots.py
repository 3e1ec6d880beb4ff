"""Draws plots of the bench's results if matplotlib is installed.

`python -m bench.plots RESULTS.json FOLDER` draws the plots of one results file. The plots in docs/performance.md were
drawn this way. The results of the workload `runs` are grouped by mode: plain, cold and warm (see bench/one_mode.py). A
warm run uses a process that has loaded Ansible before the run begins.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

ACTIONS = ("create", "start", "stop")


def draw(results: dict[str, Any], folder: Path, stem: str = "") -> list[Path]:
    """Write the plots as SVG files whose names begin with `stem`, and return their paths.

    Returns an empty list if matplotlib is not installed.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415  matplotlib is optional
    except ImportError:
        return []
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "agent-smith"  # without it, each drawing of the same results would differ
    import matplotlib.pyplot as plt  # noqa: PLC0415  matplotlib is optional

    drawn = []
    plots = {"cpu": _cpu, "memory": _memory, "bursts": _bursts, "rows": _rows, "soak": _soak}
    for name, plot in plots.items():
        figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        with contextlib.suppress(KeyError):  # raised when the results lack the workload of the plot
            plot(results, axes)
            drawn.append(folder / f"{stem}{name}.svg")
            figure.savefig(drawn[-1], metadata={"Date": None})
        plt.close(figure)
    return drawn


def _cpu(results: dict[str, Any], axes: Any) -> None:
    for number, (mode, figures) in enumerate(results["runs"].items()):
        positions = [index + number * 0.25 for index in range(len(ACTIONS))]
        axes.bar(positions, [figures["actions"][action]["cpu_s"] for action in ACTIONS], width=0.25, label=mode)
    axes.set_xticks([index + 0.25 for index in range(len(ACTIONS))], ACTIONS)
    axes.set_ylabel("CPU-seconds per job")
    axes.legend()


def _memory(results: dict[str, Any], axes: Any) -> None:
    figures_by_mode = results["runs"]
    memory_mib = [figures["burst"]["mib_per_slot"] for figures in figures_by_mode.values()]
    axes.bar(list(figures_by_mode), memory_mib, width=0.5)
    axes.set_ylabel("MiB per running job")


def _bursts(results: dict[str, Any], axes: Any) -> None:
    bursts = results["bursts"]
    labels = [f"{burst['services']} creates, {burst['clone_s']:g} s clones\n{burst['label']}" for burst in bursts]
    axes.barh(labels, [burst["jobs_per_min"] for burst in bursts])
    axes.tick_params(axis="y", labelsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("jobs per minute")


def _rows(results: dict[str, Any], axes: Any) -> None:
    for database, sizes in results["rows"].items():
        for operation in ("submit", "claim", "finish"):
            times = [operations[operation]["p99_ms"] for operations in sizes.values()]
            axes.plot([int(size) for size in sizes], times, marker="o", label=f"{operation}, {database}")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("rows")
    axes.set_ylabel("p99, ms")
    axes.legend()


def _soak(results: dict[str, Any], axes: Any) -> None:
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
    for file in draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2])):
        sys.stdout.write(f"{file}\n")
