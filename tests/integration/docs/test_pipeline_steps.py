"""The shell steps of the example pipelines in deploy/ci/, run unchanged, with the Proxmox stand-in as the lab.

The pipelines install Agent Smith from a bundle. Here, the bundle's install.sh only links the `smith` of this
environment; tests/release tests the real bundle.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sysconfig
import tarfile
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from smith_lab.lab_test.lab_settings import VARIABLE_PREFIX
from smith_lab.lab_test.open_lab import stand_in_settings
from smith_lab.proxmox.stand_in import running_stand_in
from support.ci_pipelines import SHELLS, shell_steps

SMITH = Path(sysconfig.get_path("scripts"), "smith")
INSTALL_SCRIPT = f"""#!/bin/sh
set -eu
[ "$2" = --with-lab ]
mkdir -p "$1/bin"
ln -sf {SMITH} "$1/bin/smith"
"""
#: A test that a provider (the organisation that runs the agent) has in its repository, beside its playbooks.
PROVIDERS_TEST = """
def test_the_lab_has_its_template(lab_run, proxmox):
    assert lab_run.settings.template in {row.vmid for row in proxmox.vms()}
"""
TIMEOUT_S = 240


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return the folder of a provider's repository."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_lab.py").write_text(PROVIDERS_TEST)
    return tmp_path


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment variables of a pipeline that has no lab and gets its bundle from a file."""
    folder = tmp_path_factory.mktemp("bundle")
    script = folder / "install.sh"
    script.write_text(INSTALL_SCRIPT)
    script.chmod(0o755)
    with tarfile.open(folder / "bundle.tar", "w") as archive:
        archive.add(script, "agent-smith-0.1.0-offline/install.sh")
    bundle = folder / "bundle.tar"
    digest = hashlib.sha256(bundle.read_bytes()).hexdigest()
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith((VARIABLE_PREFIX, "PROXMOX_", "PYTEST_"))
    }
    return env | {"AGENT_SMITH_BUNDLE_URL": bundle.as_uri(), "AGENT_SMITH_BUNDLE_SHA256": digest}


def run_step(name: str, step: str, folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a step in the shell that the CI system uses for it."""
    return subprocess.run(
        [*SHELLS[name], step], env=env, cwd=folder, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    )


@pytest.mark.parametrize("name", SHELLS)
def test_the_steps_of_a_pipeline_install_agent_smith_and_run_the_tests_and_write_reports(
    name: str, repository: Path, variables: dict[str, str]
) -> None:
    for step in shell_steps(name)["test"]:
        done = run_step(name, step, repository, variables)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "lab: a stand-in for Proxmox" in done.stdout
    (suite,) = ET.parse(repository / "report.xml").getroot().iter("testsuite")  # noqa: S314 (pytest wrote it)
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("1", "0", "0")
    assert (repository / "report.html").stat().st_size


@pytest.mark.parametrize("name", SHELLS)
def test_a_bundle_with_another_checksum_is_not_installed(
    name: str, repository: Path, variables: dict[str, str]
) -> None:
    install, *_further = shell_steps(name)["test"]
    assert run_step(name, install, repository, variables | {"AGENT_SMITH_BUNDLE_SHA256": "0" * 64}).returncode != 0
    assert not (repository / ".smith").exists()


def test_the_sweep_step_of_a_pipeline_finds_an_empty_lab_and_changes_nothing(
    repository: Path, variables: dict[str, str]
) -> None:
    with running_stand_in(folder=repository / "pve") as lab:
        env = variables | stand_in_settings(lab).variables()
        for step in shell_steps("Jenkinsfile")["sweep"]:
            done = run_step("Jenkinsfile", step, repository, env)
            assert done.returncode == 0, done.stdout + done.stderr
        assert "no guest or backup has one of the lab's VMIDs" in done.stdout
        assert lab.changing_requests() == []
