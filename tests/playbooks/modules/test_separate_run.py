"""Only the separate run of these tests has pytest-ansible's plugin, because the plugin could link the checkout."""

from __future__ import annotations

import subprocess
import sys

import pytest
from play_bench import ROOT
from plugin_sources import LINKED_CHECKOUT


def test_a_run_without_the_plugin_links_nothing_and_has_none_of_these_tests() -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/playbooks/modules",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, done.stdout + done.stderr
    assert not LINKED_CHECKOUT.exists()
