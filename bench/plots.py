"""Plots of a run, where matplotlib is installed; nothing else needs it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any


def draw(results: dict[str, Any], folder: Path, stem: str) -> list[Path]:
    """Write the plots as SVG and return their files; none without matplotlib."""
    try:
        import matplotlib as mpl  # noqa: PLC0415  optional
    except ImportError:
        return []
    mpl.use("svg")
    import matplotlib.pyplot as plt  # noqa: PLC0415  optional

    drawn = []
    for name, plot in {"cpu": _cpu, "bursts": _bursts, "rows": _rows}.items():
        figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        with contextlib.suppress(KeyError):  # a workload that was left out
            plot(results, axes)
            drawn.append(folder / f"{stem}-{name}.svg")
            figure.savefig(drawn[-1])
        plt.close(figure)
    return drawn


def _cpu(results: dict[str, Any], axes: Any) -> None:
    actions = ("create", "start", "stop")
    for number, (way, run) in enumerate(results["runs"].items()):
        places = [place + number * 0.25 for place in range(len(actions))]
        axes.bar(places, [run["actions"][action]["cpu_s"] for action in actions], width=0.25, label=way)
    axes.set_xticks([place + 0.25 for place in range(len(actions))], actions)
    axes.set_ylabel("CPU-seconds a job")
    axes.legend()


def _bursts(results: dict[str, Any], axes: Any) -> None:
    bursts = results["bursts"]
    axes.barh([burst["label"] for burst in bursts], [burst["jobs_per_min"] for burst in bursts])
    axes.invert_yaxis()
    axes.set_xlabel("jobs a minute")


def _rows(results: dict[str, Any], axes: Any) -> None:
    for database, sizes in results["rows"].items():
        for verb in ("submit", "claim", "finish"):
            times = [verbs[verb]["p99_ms"] for verbs in sizes.values()]
            axes.plot([int(size) for size in sizes], times, marker="o", label=f"{verb}, {database}")
    axes.set_xscale("log")
    axes.set_xlabel("rows")
    axes.set_ylabel("p99, ms")
    axes.legend()
