"""Two distributions: agent-smith, and agent-smith-lab, which is in no image and in no wheel of the executor."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import entry_points
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from smith_lab.lab_test.suite import TEST_FILES

PROJECT = Path(__file__).resolve().parents[3]
#: Texts in the paths of the lab's files, in the sources and after the installation.
LAB_NAMES = {"lab", "smith_lab"}
#: Every file of this package uses fakepve, whose licence is the AGPL.
AGPL_PACKAGE = PROJECT / "lab" / "smith_lab" / "proxmox" / "fakepve_server"
AGPL_LINE = "# SPDX-License-Identifier: AGPL-3.0-or-later\n"


def _project(folder: Path) -> dict[str, Any]:
    return dict(tomllib.loads((folder / "pyproject.toml").read_text())["project"])


def _wheel_names(source: Path, target: Path) -> set[str]:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    with zipfile.ZipFile(next(target.glob("*.whl"))) as wheel:
        return set(wheel.namelist())


def _build_context(ignore_file: Path) -> set[str]:
    """Return the tracked files in the context of a build: a `!` pattern names the file or one of its folders."""
    allowed = [line[1:] for line in ignore_file.read_text().splitlines() if line.startswith("!")]
    tracked = subprocess.run(["git", "ls-files"], cwd=PROJECT, check=True, capture_output=True, text=True).stdout  # noqa: S607
    return {
        name
        for name in tracked.splitlines()
        if any(fnmatch.fnmatchcase(name, pattern) or name.startswith(f"{pattern}/") for pattern in allowed)
    }


def test_both_distributions_have_one_version_and_the_lab_requires_exactly_this_version() -> None:
    executor, lab = _project(PROJECT), _project(PROJECT / "lab")
    assert lab["version"] == executor["version"]
    assert f"agent-smith=={executor['version']}" in lab["dependencies"]
    assert lab["requires-python"] == executor["requires-python"]


def test_the_executor_has_no_extra_and_no_dependency_of_the_lab() -> None:
    executor = _project(PROJECT)
    assert set(executor["optional-dependencies"]) == {"collections", "postgres", "dev"}
    requirements = chain(executor["dependencies"], *executor["optional-dependencies"].values())
    assert not [text for text in requirements if text.startswith(("fakepve", "aiohttp", "agent-smith"))]


@pytest.mark.skipif(not (PROJECT / ".git").exists(), reason="not a checkout")
def test_the_build_context_of_the_image_holds_no_lab() -> None:
    context = _build_context(PROJECT / ".containerignore")
    assert "executor/__main__.py" in context
    assert not [name for name in context if LAB_NAMES & set(Path(name).parts)]
    assert "smith_lab" not in (PROJECT / "Containerfile").read_text()


@pytest.mark.skipif(not (PROJECT / ".git").exists(), reason="not a checkout")
def test_the_build_context_of_the_labs_image_holds_both_distributions() -> None:
    context = _build_context(PROJECT / "deploy" / "lab" / "Containerfile.dockerignore")
    copied = [
        source
        for line in (PROJECT / "deploy" / "lab" / "Containerfile").read_text().splitlines()
        if line.startswith("COPY ")
        for source in line.split()[1:-1]
    ]
    assert {"executor", "lab"} <= set(copied)
    for source in copied:
        assert any(name == source or name.startswith(f"{source}/") for name in context), source
    assert "install --constraint constraints.txt . ./lab" in (PROJECT / "deploy/lab/Containerfile").read_text()


def test_both_images_have_the_same_base_fixed_by_its_digest() -> None:
    bases = [
        re.findall(r"^ARG BASE_IMAGE=(.*)$", (PROJECT / name).read_text(), re.MULTILINE)
        for name in ("Containerfile", "deploy/lab/Containerfile")
    ]
    assert bases[0] == bases[1]
    assert len(bases[0]) == 1
    assert re.fullmatch(r"debian:trixie-slim@sha256:[0-9a-f]{64}", bases[0][0])


def test_an_image_of_the_deploy_files_is_built_from_here_or_fixed_by_its_digest() -> None:
    files = [PROJECT / "deploy" / "compose.yaml", PROJECT / "deploy" / "kubernetes" / "agent-smith.yaml"]
    images = [image for file in files for image in re.findall(r"^\s+image: (\S+)", file.read_text(), re.MULTILINE)]
    assert images
    for image in images:
        assert "agent-smith" in image or "@sha256:" in image, image


def test_the_executors_wheel_holds_no_lab(tmp_path: Path) -> None:
    names = _wheel_names(PROJECT, tmp_path)
    assert "executor/__main__.py" in names
    assert [name for name in names if name.endswith(".data/data/share/man/man1/smith.1")]
    assert "executor/ansible/ansible_collections/agent_smith/proxmox/playbooks/create.yml" in names
    assert not [name for name in names if LAB_NAMES & set(Path(name).parts)]


def test_the_labs_wheel_holds_the_lab_and_both_licences(tmp_path: Path) -> None:
    names = _wheel_names(PROJECT / "lab", tmp_path)
    metadata = f"agent_smith_lab-{_project(PROJECT / 'lab')['version']}.dist-info"
    assert {Path(name).parts[0] for name in names} == {"smith_lab", metadata}
    assert "smith_lab/proxmox/fakepve_server/__main__.py" in names
    licences = {f"{metadata}/licenses/LICENSES/{name}.txt" for name in ("Apache-2.0", "AGPL-3.0-or-later")}
    assert licences <= names
    assert _suite_files() <= names
    assert {f"smith_lab/suite/{name}" for name in TEST_FILES} <= names


def _suite_files() -> set[str]:
    """Return the paths, in the wheel, of the suite's files and of every file that one of them imports."""
    source, found, queue = PROJECT / "lab" / "suite", set(), ["conftest", *(Path(name).stem for name in TEST_FILES)]
    while queue:
        module = queue.pop()
        if module in found or not (source / f"{module}.py").exists():
            continue
        found.add(module)
        queue += re.findall(r"^(?:from|import) (\w+)", (source / f"{module}.py").read_text(), re.MULTILINE)
    return {f"smith_lab/suite/{module}.py" for module in found} | {"smith_lab/suite/callback_plugins/recorder.py"}


def test_each_file_that_uses_fakepve_names_the_agpl() -> None:
    files = [file for file in AGPL_PACKAGE.glob("*.py") if file.name != "__init__.py"]
    assert len(files) > 5
    assert [file.name for file in files if not file.read_text().startswith(AGPL_LINE)] == []


def test_the_labs_commands_are_entry_points_that_load() -> None:
    found = {point.name: point for point in entry_points(group="smith.commands")}
    assert set(found) == {"demo", "lab", "lab-sweep", "lab-test"}
    assert all(callable(point.load()) for point in found.values())
