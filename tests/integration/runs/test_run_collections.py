"""Runs search for collections in the same folders as `smith doctor`, although each run has a HOME of its own."""

from __future__ import annotations

import configparser
import os
import subprocess
import sysconfig
from pathlib import Path

import pytest

from executor.model import PlaybookRun
from executor.runs.actions import collection_folder
from executor.runs.runner_config import run_environment
from executor.version import collection_search_path, community_proxmox_version

MODULE = '"""A module."""\nDOCUMENTATION = "module: hello\\nshort_description: says hello\\n"\n'
TIMEOUT_S = 120


def environment_of_a_run(folder: Path) -> dict[str, str]:
    run = PlaybookRun(ident="create-1", action="create", playbook=folder / "create.yml", vm={}, timeout_s=60)
    return run_environment(folder, run, collection_folder(), None)


def write_collection(folder: Path) -> None:
    modules = folder / "ansible_collections" / "acme" / "tools" / "plugins" / "modules"
    modules.mkdir(parents=True)
    (modules / "hello.py").write_text(MODULE)


@pytest.mark.parametrize("place", ["home/.ansible/collections", "variable"])
def test_a_run_finds_collections_of_the_user_and_of_ansible_collections_path(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if place == "variable":
        monkeypatch.setenv("ANSIBLE_COLLECTIONS_PATH", str(tmp_path / "variable"))
    else:
        monkeypatch.delenv("ANSIBLE_COLLECTIONS_PATH", raising=False)
    write_collection(tmp_path / place)
    folder = tmp_path / "run"
    (folder / "home").mkdir(parents=True)
    (folder / "tmp").mkdir()
    command = [str(Path(sysconfig.get_path("scripts")) / "ansible-doc"), "-t", "module", "-l", "acme.tools"]
    done = subprocess.run(
        command, env=environment_of_a_run(folder), capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    )
    assert "acme.tools.hello" in done.stdout, done.stderr


def test_a_run_searches_first_in_the_folders_that_ansible_cfg_names() -> None:
    config = configparser.ConfigParser()
    config.read(collection_folder() / "ansible.cfg")
    configured = config["defaults"]["collections_path"].split(":")[:2]
    searched = environment_of_a_run(Path("/run"))["ANSIBLE_COLLECTIONS_PATH"].split(os.pathsep)
    assert searched[:2] == [os.path.normpath(collection_folder() / folder) for folder in configured]
    assert searched[2:] == collection_search_path()


def test_the_collection_of_the_python_environment_precedes_that_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = community_proxmox_version()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ANSIBLE_COLLECTIONS_PATH", raising=False)
    folder = tmp_path / ".ansible" / "collections" / "ansible_collections" / "community" / "proxmox"
    folder.mkdir(parents=True)
    (folder / "MANIFEST.json").write_text('{"collection_info": {"version": "99.1.0"}}')
    assert community_proxmox_version() == installed
