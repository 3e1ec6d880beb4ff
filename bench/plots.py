"""Draws the plots of docs/performance.md as SVG files: line charts and bar charts, without a plotting library.

The plots show the results of the bench's part `burst`, in which many VMs are ordered at the same time. They compare
variants: plain ansible-runner, the executor of an earlier commit, and this checkout's executor. A slot runs one job at
a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from bench.burst import busy_slot_counts

Json = dict[str, Any]
Points = Sequence[tuple[float, float]]
#: The size of a line chart with its margins, in SVG units. A bar chart has the same width.
WIDTH, HEIGHT = 720, 360
#: The margins around the plot area, which contain legend and labels.
LEFT, RIGHT, TOP, BOTTOM = 90, 20, 40, 50
PLOT_WIDTH, PLOT_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
BAR_HEIGHT = 34
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee")
#: The distance between two ticks of an axis is one of these numbers, times a power of ten.
AXIS_STEPS = (1, 2, 5, 10)
MAX_TICKS = 8
#: The label of each kind of process in the plot. Each key is a key of `cpu_s_per_job`, a result of `burst`. The value
#: of `runs` is the sum of all playbook runs and warm servers. A warm server forks a process for each playbook run. The
#: supervisor is the parent process of the agent.
LABEL_BY_PROCESS = {
    "runs": "playbook runs, warm servers",
    "agent": "agent",
    "supervisor": "supervisor",
    "stand_in": "stand-in",
}


def draw_plots(results: Json, folder: Path) -> list[tuple[Path, str]]:
    """Draw the plots of the part `burst` if `results` contain it; return the path and the description of each file."""
    burst_by_variant = results["parts"].get("burst", {}).get("figures")
    if not burst_by_variant:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    charts: dict[str, tuple[str, Callable[[], str]]] = {
        "burst": (
            "Jobs done over the time of the burst",
            lambda: line_chart(_jobs_done_over_time(burst_by_variant), "s", "jobs done"),
        ),
        "slots": (
            "Busy slots over the time of the burst",
            lambda: line_chart(_busy_slots_over_time(burst_by_variant), "s", "busy slots"),
        ),
        "processes": (
            "CPU-seconds per job of the burst, by process",
            lambda: bar_chart(_cpu_s_by_process(burst_by_variant), "CPU-seconds per job"),
        ),
    }
    files = []
    for name, (description, draw_chart) in charts.items():
        file = folder / f"{name}.svg"
        file.write_text(draw_chart(), encoding="utf-8")
        files.append((file, description))
    return files


def _jobs_done_over_time(burst_by_variant: Json) -> dict[str, Points]:
    return {
        _burst_label(variant_name, burst): [
            (0.0, 0.0),
            *((end, float(number)) for number, end in enumerate(sorted(_end_times(burst)), 1)),
        ]
        for variant_name, burst in burst_by_variant.items()
    }


def _burst_label(variant_name: str, burst: Json) -> str:
    """Return the label of a line: the variant, and the number of VMs that it creates."""
    return f"{variant_name}, {len(burst['spans'])} creates"


def _end_times(burst: Json) -> list[float]:
    """Return the end of each job. A span is the start and the end of a job, in seconds since the start of the burst."""
    return [end for _start, end in burst["spans"]]


def _busy_slots_over_time(burst_by_variant: Json) -> dict[str, Points]:
    # `busy_slot_counts` returns points: a time, and the number of busy slots after it.
    return {
        _burst_label(variant_name, burst): [(0.0, 0.0), *busy_slot_counts(burst["spans"])]
        for variant_name, burst in burst_by_variant.items()
    }


def _cpu_s_by_process(burst_by_variant: Json) -> dict[str, dict[str, float]]:
    return {
        variant_name: {label: burst["cpu_s_per_job"].get(process, 0.0) for process, label in LABEL_BY_PROCESS.items()}
        for variant_name, burst in burst_by_variant.items()
    }


# --- the two kinds of plots -------------------------------------------------------------------------------------------


def line_chart(series: Mapping[str, Points], x_label: str, y_label: str) -> str:
    """Return an SVG of lines that change in steps: each value holds until the next point."""
    x_step, x_end = _axis_step_and_end(max(x for points in series.values() for x, _y in points))
    y_step, y_end = _axis_step_and_end(max(y for points in series.values() for _x, y in points))
    parts = [_x_axis(x_step, x_end, x_label, HEIGHT), _legend(list(series))]
    for tick in _tick_values(y_step, y_end):
        y = TOP + PLOT_HEIGHT * (1 - tick / y_end)
        parts += [_line(LEFT, y, WIDTH - RIGHT, y), _text(LEFT - 8, y + 4, f"{tick:g}", "end")]
    parts.append(_text(LEFT - 8, TOP - 14, y_label, "end"))
    for points, colour in zip(series.values(), COLOURS, strict=False):
        path: list[str] = []
        for x_value, y_value in points:
            x = LEFT + PLOT_WIDTH * x_value / x_end
            y = TOP + PLOT_HEIGHT * (1 - y_value / y_end)
            path.append(f"H{x:.1f}V{y:.1f}" if path else f"M{x:.1f} {y:.1f}")
        parts.append(f'<path d="{"".join(path)}" fill="none" stroke="{colour}" stroke-width="2"/>')
    return _svg(HEIGHT, parts)


def bar_chart(bars: Mapping[str, Mapping[str, float]], x_label: str) -> str:
    """Return an SVG of horizontal bars. A bar consists of one section for each of its values."""
    height = TOP + len(bars) * BAR_HEIGHT + BOTTOM
    x_step, x_end = _axis_step_and_end(max(sum(values.values()) for values in bars.values()))
    parts = [_x_axis(x_step, x_end, x_label, height), _legend(list(next(iter(bars.values()))))]
    for number, (name, values) in enumerate(bars.items()):
        x, y = float(LEFT), TOP + number * BAR_HEIGHT + 4
        parts.append(_text(LEFT - 8, y + BAR_HEIGHT / 2, name, "end"))
        for value, colour in zip(values.values(), COLOURS, strict=False):
            width = PLOT_WIDTH * value / x_end
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BAR_HEIGHT - 8}" fill="{colour}"/>')
            x += width
    return _svg(height, parts)


def _axis_step_and_end(maximum: float) -> tuple[float, float]:
    """Return the distance between two ticks of an axis, and the value at the end of the axis."""
    maximum = maximum or 1.0
    magnitude = 1e-3
    while True:
        for step in AXIS_STEPS:
            if maximum / (step * magnitude) <= MAX_TICKS:
                return step * magnitude, maximum
        magnitude *= 10


def _tick_values(step: float, end: float) -> list[float]:
    return [number * step for number in range(int(end / step + 1e-9) + 1)]


def _x_axis(step: float, end: float, label: str, height: float) -> str:
    parts = []
    for tick in _tick_values(step, end):
        x = LEFT + PLOT_WIDTH * tick / end
        parts += [_line(x, TOP, x, height - BOTTOM), _text(x, height - BOTTOM + 18, f"{tick:g}", "middle")]
    return "".join([*parts, _text(LEFT + PLOT_WIDTH / 2, height - 10, label, "middle")])


def _legend(names: list[str]) -> str:
    parts, x = [], float(LEFT)
    for name, colour in zip(names, COLOURS, strict=False):
        parts.append(f'<rect x="{x:.1f}" y="6" width="12" height="12" fill="{colour}"/>{_text(x + 17, 17, name)}')
        x += 40 + 7 * len(name)
    return "".join(parts)


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ccc"/>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(height: float, parts: list[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="12"><rect width="{WIDTH}" height="{height}" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )
