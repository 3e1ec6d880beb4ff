"""Builds the library that shifts the wall clock of one process (clock_shift.c)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def build(folder: Path) -> Path:
    """Build the library for LD_PRELOAD in a folder; return its path. Skip the test if there is no C compiler."""
    compiler, library = shutil.which("cc"), folder / "clock_shift.so"
    if compiler is None:
        pytest.skip("NOT TESTED WITH CLOCK JUMPS: no C compiler")
    source = Path(__file__).with_name("clock_shift.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True)
    return library
