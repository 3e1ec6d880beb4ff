"""Measures how long `smith` commands take to list the rows of a large database. The commands run in this process."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any
from unittest.mock import patch

from bench.measuring import MeasurementFailed, median, percentile
from executor.cli.app import build_root_command

Json = dict[str, Any]
#: How many times each command runs before the measurement.
WARM_UP_REPEATS = 2
#: The arguments of the measured `smith` commands.
LIST_COMMANDS = (
    "jobs list",
    "jobs list --failed",
    "jobs list --status processing",
    "jobs list --since 1d",
    "jobs list --limit 1000",
    "runs list",
    "mappings list",
    "mappings list --state deleted",
    "audit list",
    "nodes list",
    "critical list",
    "status",
    "top --once",
)


def measure_list_commands(environment: Mapping[str, str], repeats: int) -> Json:
    """Return the durations and the output size of each command. `environment` contains the settings."""
    with patch.dict(os.environ, environment, clear=True):
        return {command: _measure_command(command, repeats) for command in LIST_COMMANDS}


def _measure_command(command: str, repeats: int) -> dict[str, float]:
    durations_ms = []
    for number in range(-WARM_UP_REPEATS, repeats):  # a repeat before the measurement has a negative number
        root_command, output = build_root_command(), io.StringIO()
        start_time_s = time.perf_counter()
        with redirect_stdout(output):
            exit_code = root_command(command.split(), prog_name="smith", standalone_mode=False)
        if exit_code:
            raise MeasurementFailed(f"smith {command}: exit code {exit_code}")
        if number >= 0:
            durations_ms.append(1000 * (time.perf_counter() - start_time_s))
    output_bytes = len(output.getvalue().encode())
    return {"p50_ms": median(durations_ms), "p99_ms": percentile(durations_ms, 0.99), "kib": output_bytes / 1024}
