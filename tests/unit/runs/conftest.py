"""Settings and playbooks for the tests that plan runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.plan_requests import ACTIONS, make_settings

from executor.runs.request import PlaybookSettings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a playbook for each of our actions."""
    for action in ACTIONS:
        (tmp_path / f"{action}.yml").write_text("---\n[]\n")
    return tmp_path


@pytest.fixture
def settings(folder: Path) -> PlaybookSettings:
    """Return the settings with our playbooks and two templates."""
    return make_settings(folder)
