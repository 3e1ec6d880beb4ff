"""Installs the recorded version, to which the bench compares this checkout, from git's history.

The folder `.cache/bench/` keeps the installation for later runs of the bench.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.measuring import ROOT, WorkloadFailed

sys.path.append(str(ROOT / "tests"))  # for the helper modules of the tests, which belong to no distribution
from support.recorded_commits import CommitMissing, export_tree, require_commit

#: The version whose profile the speed goals of docs/performance.md refer to. Its playbooks have up to 18 Ansible tasks.
#: It stays the same, so that the ratios of different versions can be compared.
BASELINE_COMMIT = "242702f196e0bb3ceab041ed5c4dfed2fd98e460"
CACHE_FOLDER = ROOT / ".cache" / "bench"
#: The settings of the agent. The processes that the bench starts do not inherit them.
SETTING_PREFIXES = ("FULCRUM_", "PROXMOX_", "SMITH_")
#: The file of a checkout that names all settings. The name of a secret ends with _FILE there.
SETTINGS_EXAMPLE = Path("deploy/agent-smith.env.example")
#: If an installation or an agent fails, this much of the end of its output is shown.
MAX_SHOWN_CHARACTERS = 3000


class BaselineMissing(Exception):
    """The history of this clone does not have BASELINE_COMMIT."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One installation that the bench compares with others."""

    name: str
    root: Path  #: the checkout with its playbooks
    python: Path  #: the interpreter in whose virtual environment it is installed

    @property
    def runs_executor(self) -> bool:
        """Whether the executor runs the playbooks, and not ansible-runner alone."""
        return self.name != PLAIN

    def known_settings(self) -> frozenset[str]:
        """Return the names of the executor's settings, from the example of a settings file in the checkout."""
        example = (self.root / SETTINGS_EXAMPLE).read_text(encoding="utf-8")
        names = re.findall(r"^#?([A-Z][A-Z0-9_]*)=", example, flags=re.MULTILINE)
        return frozenset({*names, *(name.removesuffix("_FILE") for name in names)})


#: The playbooks of BASELINE_COMMIT, run by ansible-runner as in the introduction of its documentation.
PLAIN = "plain"
#: The executor of BASELINE_COMMIT.
BASELINE = "baseline"
#: The executor of this checkout.
CURRENT = "current"


def variants() -> list[Variant]:
    """Return what is compared; install the baseline first if it is not installed.

    Raises BaselineMissing, and WorkloadFailed if the installation fails.
    """
    root = _install(BASELINE_COMMIT)
    python = root / ".venv" / "bin" / "python"
    return [
        Variant(name=PLAIN, root=root, python=python),
        Variant(name=BASELINE, root=root, python=python),
        *current_only(),
    ]


def current_only() -> list[Variant]:
    """Return the variants without the baseline."""
    return [Variant(name=CURRENT, root=ROOT, python=Path(sys.executable))]


def inherited_environment() -> dict[str, str]:
    """Return the environment variables of this process that a process of any variant may inherit.

    PYTHONDONTWRITEBYTECODE is not inherited, because each process would then compile its modules again.
    """
    excluded = (*SETTING_PREFIXES, "PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "ANSIBLE_")
    return {name: value for name, value in os.environ.items() if not name.startswith(excluded)}


def _install(commit: str) -> Path:
    """Export the commit and make its virtual environment with its own constraints; return the exported checkout."""
    try:
        require_commit(commit)
    except CommitMissing as error:
        raise BaselineMissing(str(error)) from error
    folder = CACHE_FOLDER / commit[:7]
    done_file = CACHE_FOLDER / f"{commit[:7]}.installed"
    if done_file.exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)  # of an installation that was interrupted
    folder.mkdir(parents=True)
    export_tree(commit, folder)
    _run([sys.executable, "-m", "venv", ".venv"], folder)
    pip = [".venv/bin/python", "-m", "pip", "--disable-pip-version-check", "--quiet"]
    # Nothing is compiled here, which would double the time: the warm-up of each part compiles the modules that it uses.
    _run([*pip, "install", "--no-compile", "-c", "constraints.txt", "-e", "."], folder)
    _run([*pip, "download", "--no-deps", "-c", "constraints.txt", "-d", "wheels", "ansible"], folder)
    (wheel,) = (folder / "wheels").glob("ansible-*.whl")
    _run([".venv/bin/python", "deploy/install_collection.py", str(wheel)], folder)
    shutil.rmtree(folder / "wheels")
    done_file.touch()
    return folder


def _run(command: list[str], folder: Path) -> None:
    finished_process = subprocess.run(
        command, cwd=folder, env=inherited_environment(), capture_output=True, text=True, check=False
    )
    if finished_process.returncode:
        output = (finished_process.stdout + finished_process.stderr)[-MAX_SHOWN_CHARACTERS:]
        raise WorkloadFailed(f"the baseline cannot be installed: {' '.join(command)}:\n{output}")
