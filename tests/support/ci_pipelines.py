"""Extracts the shell steps of the pipelines in deploy/ci/, in the order in which a pipeline runs them."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "ci"
#: The command with which each CI system runs the text of a step.
BASH = ("bash", "-e", "-o", "pipefail", "-c")
SHELLS = {"github-actions.yml": BASH, "gitlab-ci.yml": BASH, "Jenkinsfile": ("sh", "-xe", "-c")}
#: A step of a declarative pipeline of Jenkins.
JENKINS_STAGE = re.compile(r"stage\('(\w+)'\).*?sh '''\n(.*?)'''", re.DOTALL)


def read_yaml(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
    return document


def shell_steps(name: str) -> dict[str, list[str]]:
    """Return the commands of the jobs `test` and `sweep`: one text for each step."""
    if name == "github-actions.yml":
        jobs = read_yaml(name)["jobs"]
        return {job: [step["run"] for step in jobs[job]["steps"] if "run" in step] for job in ("test", "sweep")}
    if name == "gitlab-ci.yml":
        document = read_yaml(name)
        install = "\n".join(document["default"]["before_script"])
        return {job: [install, "\n".join(document[f"lab-{job}"]["script"])] for job in ("test", "sweep")}
    stages = {stage: textwrap.dedent(text) for stage, text in JENKINS_STAGE.findall((FOLDER / name).read_text())}
    return {"test": [stages["Install"], stages["Test"]], "sweep": [stages["Install"], stages["Sweep"]]}
