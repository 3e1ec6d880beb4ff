"""The parts that the pipelines in deploy/ci/ share. tests/integration/docs/test_pipeline_steps.py runs them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from smith_lab.lab_test.lab_settings import REQUIRED_VARIABLES, VARIABLE_PREFIX
from support.ci_pipelines import FOLDER, SHELLS, read_yaml, shell_steps

PAGE = (Path(__file__).parents[3] / "docs" / "ci.md").read_text(encoding="utf-8")


def lines_of(name: str, job: str) -> list[str]:
    return [line for step in shell_steps(name)[job] for line in step.strip().splitlines()]


def test_every_pipeline_is_tested() -> None:
    assert {file.name for file in FOLDER.iterdir()} == set(SHELLS)


@pytest.mark.parametrize("job", ["test", "sweep"])
def test_all_pipelines_run_the_same_commands(job: str) -> None:
    found = {name: lines_of(name, job) for name in SHELLS}
    assert found["gitlab-ci.yml"] == found["github-actions.yml"] == found["Jenkinsfile"]
    command = shlex.split(found["Jenkinsfile"][-1])
    assert command[:2] == [".smith/bin/smith", f"lab-{job}"]


def test_the_ci_system_stores_the_reports_of_the_tests_also_after_a_failure() -> None:
    written = set(re.findall(r"report\.\w+", "".join(lines_of("Jenkinsfile", "test"))))
    *_steps, upload = read_yaml("github-actions.yml")["jobs"]["test"]["steps"]
    assert (upload["if"], set(upload["with"]["path"].split())) == ("always()", written)
    artifacts = read_yaml("gitlab-ci.yml")["lab-test"]["artifacts"]
    assert (artifacts["when"], {artifacts["reports"]["junit"], *artifacts["paths"]}) == ("always", written)
    post = (FOLDER / "Jenkinsfile").read_text().partition("always {")[2].partition("}")[0]
    assert set(re.findall(r"report\.\w+", post)) == written


def test_the_page_and_the_workflow_name_every_required_variable() -> None:
    required = {f"{VARIABLE_PREFIX}{name}" for name in REQUIRED_VARIABLES} | {
        "AGENT_SMITH_BUNDLE_URL",
        "AGENT_SMITH_BUNDLE_SHA256",
    }
    assert required <= set(read_yaml("github-actions.yml")["env"])
    assert {name for name in required if name.removeprefix(VARIABLE_PREFIX) not in PAGE} == set()
    for name in SHELLS:
        assert f"deploy/ci/{name}" in PAGE


def test_a_secret_is_read_from_the_secrets_of_the_ci_system() -> None:
    workflow = read_yaml("github-actions.yml")["env"]
    assert workflow[f"{VARIABLE_PREFIX}TOKEN_SECRET"] == "${{ secrets.LAB_PROXMOX_TOKEN_SECRET }}"
    assert "LAB_PROXMOX_TOKEN_SECRET = credentials(" in (FOLDER / "Jenkinsfile").read_text()
