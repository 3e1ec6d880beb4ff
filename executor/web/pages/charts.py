"""Computes the charts that web pages show as SVG. A chart needs no script, and is readable without colours.

Colours come from the style sheet by class, because the web pages' Content-Security-Policy forbids inline styles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from executor.database.ended_jobs import HourCounts

#: The size of the chart that `hours_chart` returns, and the gap between two bars, in SVG user units. The web page
#: scales the whole chart.
WIDTH, HEIGHT, BAR_GAP = 480, 120, 3


@dataclass(frozen=True, kw_only=True)
class Bar:
    """The bar of one hour: its position, the heights of its two parts, and its tooltip text."""

    x: float
    width: float
    completed_y: float
    completed_height: float
    failed_y: float
    failed_height: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """The values from which the HTML template draws a chart."""

    bars: Sequence[Bar]
    max_job_count: int  #: the largest number of jobs in one hour; 1 if there are no jobs
    width: int = WIDTH
    height: int = HEIGHT


def hours_chart(counts: Sequence[HourCounts]) -> Chart:
    """Return the chart of the jobs that ended in each hour. In a bar, failed jobs are above completed jobs."""
    max_job_count = max((count.completed + count.failed for count in counts), default=0) or 1
    hour_width = WIDTH / max(len(counts), 1)
    bars = [_make_bar(count, index * hour_width, hour_width, max_job_count) for index, count in enumerate(counts)]
    return Chart(bars=bars, max_job_count=max_job_count)


def _make_bar(count: HourCounts, x: float, hour_width: float, max_job_count: int) -> Bar:
    completed_height = round(HEIGHT * count.completed / max_job_count, 1)
    failed_height = round(HEIGHT * count.failed / max_job_count, 1)
    return Bar(
        x=round(x + BAR_GAP / 2, 1),
        width=round(hour_width - BAR_GAP, 1),
        completed_y=round(HEIGHT - completed_height, 1),
        completed_height=completed_height,
        failed_y=round(HEIGHT - completed_height - failed_height, 1),
        failed_height=failed_height,
        text=f"{count.start:%H}:00Z: {count.completed} completed, {count.failed} failed",
    )


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return the smallest value that is at least as large as `percent` % of the values (nearest rank).

    Return None if there are no values.
    """
    if not values:
        return None
    return sorted(values)[max(math.ceil(len(values) * percent / 100) - 1, 0)]
