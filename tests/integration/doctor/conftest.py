"""Fixtures of these tests: a lab (FulcrumCore simulator and Proxmox stand-in), and `smith doctor` with its settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from smith_lab.system import LabSystem, run_lab_system
from support.doctor_results import Doctor, Results

from executor.doctor.run import run_checks
from executor.redaction import redactor


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabSystem]:
    with run_lab_system(tmp_path_factory.mktemp("lab")) as system:
        yield system
        redactor.discard(system.ids.agent_token, system.proxmox.token_secret)


@pytest.fixture
def doctor(lab: LabSystem, tmp_path: Path) -> Doctor:
    """Return a function that runs all checks with the settings of the lab and with its arguments.

    An empty value removes a setting.
    """

    def run(**variables: str) -> Results:
        environ = lab.environment() | {"SMITH_DATA_DIR": str(tmp_path / "data")} | variables
        return Results(list(run_checks(env_file=None, environ={name: text for name, text in environ.items() if text})))

    return run
