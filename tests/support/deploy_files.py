"""Where the files of deploy/ are, and how long a stop of an agent may take, for the tests of these files."""

from __future__ import annotations

from pathlib import Path

from executor.cli.run import STOP_MARGIN_S
from executor.settings.settings import FIELDS

PROJECT = Path(__file__).resolve().parents[2]
DEPLOY = PROJECT / "deploy"


def drain_s() -> float:
    """Return how long a stop may take: the default drain time and the margin after it."""
    return float(FIELDS["SMITH_DRAIN_TIMEOUT_S"].default) + STOP_MARGIN_S
