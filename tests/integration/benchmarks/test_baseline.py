"""The recorded version that the benchmarks compare with is read from git's history."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.recorded_commits import PROJECT, export_tree, require_commit

from bench.baseline import BASELINE, BASELINE_COMMIT, Variant, only_current_variant
from bench.labs import running_lab_without_agent, start_agent
from bench.measuring import MeasurementFailed
from executor.settings.settings import Settings


def test_in_a_shallow_clone_the_benchmarks_run_without_the_comparison(tmp_path: Path) -> None:
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


def test_the_lab_gives_the_recorded_version_only_settings_that_it_knows(tmp_path: Path) -> None:
    export_tree(BASELINE_COMMIT, tmp_path)
    baseline = Variant(name=BASELINE, root=tmp_path, python=Path(sys.executable))
    (current,) = only_current_variant()
    assert {"FULCRUM_API_TOKEN", "PROXMOX_TOKEN_SECRET", "PROXMOX_TEMPLATES"} <= baseline.setting_names()
    assert "PROXMOX_TAGS" in current.setting_names() - baseline.setting_names()
    assert {name.upper() for name in Settings.model_fields} <= current.setting_names()
    for variant in (baseline, current):
        with running_lab_without_agent(variant, tmp_path) as lab:
            names = {name for name in lab.environment() if name.startswith(("FULCRUM_", "PROXMOX_", "SMITH_"))}
        assert names <= variant.setting_names(), variant.name


def test_the_error_about_an_agent_that_ends_before_its_first_poll_contains_the_log_of_the_agent(tmp_path: Path) -> None:
    (current,) = only_current_variant()
    with (
        running_lab_without_agent(current, tmp_path, PROXMOX_PORT="none") as lab,
        pytest.raises(MeasurementFailed) as failure,
    ):
        start_agent(lab)
    assert "PROXMOX_PORT" in str(failure.value)
