"""The recorded version that the benchmarks compare with is read from git's history."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from support.recorded_commits import PROJECT, require_commit

from bench.baseline import BASELINE_COMMIT


def test_a_shallow_clone_measures_without_the_comparison(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    command = ["git", "clone", "-q", "--depth", "1", f"file://{PROJECT}", str(clone)]
    subprocess.run(command, check=True)
    for folder in ("bench", "tests/support"):  # as they are in the work tree
        shutil.copytree(PROJECT / folder, clone / folder, dirs_exist_ok=True)
    command = [sys.executable, "-m", "bench", "--quick", "--only", "rows", "--row-counts", "100", "--row-repeats", "2"]
    finished = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    text = " ".join(finished.stdout.split())
    assert "no comparison with plain ansible-runner and the baseline" in text
    assert f"commit {BASELINE_COMMIT} is not in this shallow clone: run `git fetch --unshallow`" in text
    assert "part rows" in text


def test_the_recorded_version_is_in_the_history_of_this_clone() -> None:
    require_commit(BASELINE_COMMIT)
