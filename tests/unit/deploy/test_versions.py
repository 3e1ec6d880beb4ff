"""Both wheels, the collection and the image have one version, and `make release` refuses anything else."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[3]
VERSION = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
read_versions = runpy.run_path(str(PROJECT / "deploy" / "versions.py"))["read_versions"]


def test_wheels_and_collection_have_one_version() -> None:
    versions = read_versions(PROJECT)
    assert set(versions) >= {"pyproject.toml", "lab/pyproject.toml", "galaxy.yml"}
    assert set(versions.values()) == {VERSION}


def test_the_image_has_the_version_of_the_wheel(tmp_path: Path) -> None:
    script = 'TMPDIR=$1; . deploy/image/lib.sh; project_version; declare -f build_image | grep -c "VERSION=\\$version"'
    command = ["/bin/bash", "-euc", script, "bash", str(tmp_path)]
    done = subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [VERSION, "1"]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("pyproject.toml", f'version = "{VERSION}"'),
        ("lab/pyproject.toml", f'version = "{VERSION}"'),
        ("lab/pyproject.toml", f'"agent-smith=={VERSION}"'),
        ("galaxy.yml", f"version: {VERSION}"),
    ],
)
def test_a_release_with_two_versions_is_refused(tmp_path: Path, file: str, text: str) -> None:
    for name in ("pyproject.toml", "lab/pyproject.toml", "galaxy.yml", "deploy/versions.py", "deploy/release.sh"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(PROJECT / name, tmp_path / name)
    content = (PROJECT / file).read_text()
    assert content.count(text) == 1
    (tmp_path / file).write_text(content.replace(text, text.replace(VERSION, "99.0.0")))
    command = [str(tmp_path / "deploy" / "release.sh"), str(Path(sys.executable).parent)]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "the versions differ:" in done.stderr
    assert "99.0.0" in done.stderr
    assert f"  {VERSION}" in done.stderr
    assert not (tmp_path / "dist").exists()
