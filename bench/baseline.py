"""Installs an earlier version of the executor from git's history. The benchmarks compare this checkout with it.

The bench is the program of the benchmarks (`python -m bench`). A variant is an installation that the bench compares
with others. The earlier version stays in the folder `.cache/bench/`, and later executions of the bench use it again.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.measuring import ROOT, MeasurementFailed

sys.path.append(str(ROOT / "tests"))  # for the helper modules of the tests, which no installed package contains
from support.recorded_commits import CommitMissing, export_tree, require_commit

#: The commit of the earlier version. Do not change it: the speed goals of docs/performance.md refer to it.
BASELINE_COMMIT = "242702f196e0bb3ceab041ed5c4dfed2fd98e460"
CACHE_FOLDER = ROOT / ".cache" / "bench"
#: The prefixes of the environment variables with the agent's settings. Processes of a variant do not inherit them.
SETTING_PREFIXES = ("FULCRUM_", "PROXMOX_", "SMITH_")
#: The file of a checkout that lists all settings. It lists a secret setting NAME as NAME_FILE.
SETTINGS_EXAMPLE = Path("deploy/agent-smith.env.example")
#: How many characters at the end of the output are in the error message of a failed installation or a failed agent.
MAX_SHOWN_CHARACTERS = 3000


class BaselineMissing(Exception):
    """The git history of this clone does not contain BASELINE_COMMIT."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One installation that the bench compares with others: an executor, or playbooks for plain ansible-runner."""

    name: str
    root: Path  #: the folder of the checkout
    python: Path  #: the Python interpreter of the virtual environment in which the checkout is installed

    @property
    def runs_executor(self) -> bool:
        """Whether the executor runs the playbooks. If not, ansible-runner alone runs them."""
        return self.name != PLAIN

    def setting_names(self) -> frozenset[str]:
        """Return the names of the executor's settings, from the example settings file of the checkout."""
        example = (self.root / SETTINGS_EXAMPLE).read_text(encoding="utf-8")
        names = re.findall(r"^#?([A-Z][A-Z0-9_]*)=", example, flags=re.MULTILINE)
        return frozenset({*names, *(name.removesuffix("_FILE") for name in names)})


#: The variant that runs the playbooks of BASELINE_COMMIT by `ansible_runner.run`, without the executor.
PLAIN = "plain"
#: The variant that runs the playbooks by the executor of BASELINE_COMMIT.
BASELINE = "baseline"
#: The variant that runs the playbooks by the executor of this checkout.
CURRENT = "current"


def install_variants() -> list[Variant]:
    """Install the baseline if it is not installed; return the variants to compare.

    Raises BaselineMissing, or MeasurementFailed if the installation fails.
    """
    root = _install_commit(BASELINE_COMMIT)
    python = root / ".venv" / "bin" / "python"
    return [
        Variant(name=PLAIN, root=root, python=python),
        Variant(name=BASELINE, root=root, python=python),
        *only_current_variant(),
    ]


def only_current_variant() -> list[Variant]:
    """Return only the variant `current`."""
    return [Variant(name=CURRENT, root=ROOT, python=Path(sys.executable))]


def inherited_environment() -> dict[str, str]:
    """Return the environment variables of this process that the processes of a variant inherit.

    PYTHONDONTWRITEBYTECODE is excluded: with it, each process would compile the Python modules again.
    """
    excluded_prefixes = (*SETTING_PREFIXES, "PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "ANSIBLE_")
    return {name: value for name, value in os.environ.items() if not name.startswith(excluded_prefixes)}


def _install_commit(commit: str) -> Path:
    """Export the commit, and install it with its constraints.txt in a virtual environment; return the folder."""
    try:
        require_commit(commit)
    except CommitMissing as error:
        raise BaselineMissing(str(error)) from error
    folder = CACHE_FOLDER / commit[:7]
    done_file = CACHE_FOLDER / f"{commit[:7]}.installed"
    if done_file.exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)  # the remains of an interrupted installation
    folder.mkdir(parents=True)
    export_tree(commit, folder)
    _run_command([sys.executable, "-m", "venv", ".venv"], folder)
    pip = [".venv/bin/python", "-m", "pip", "--disable-pip-version-check", "--quiet"]
    # Compilation of the Python modules would double the time of the installation. The first process that imports a
    # module compiles it.
    _run_command([*pip, "install", "--no-compile", "-c", "constraints.txt", "-e", "."], folder)
    # The collection community.proxmox is part of the wheel of `ansible`. install_collection.py installs only it.
    _run_command([*pip, "download", "--no-deps", "-c", "constraints.txt", "-d", "wheels", "ansible"], folder)
    (wheel,) = (folder / "wheels").glob("ansible-*.whl")
    _run_command([".venv/bin/python", "deploy/install_collection.py", str(wheel)], folder)
    shutil.rmtree(folder / "wheels")
    done_file.touch()
    return folder


def _run_command(command: list[str], folder: Path) -> None:
    finished_process = subprocess.run(
        command, cwd=folder, env=inherited_environment(), capture_output=True, text=True, check=False
    )
    if finished_process.returncode:
        output = (finished_process.stdout + finished_process.stderr)[-MAX_SHOWN_CHARACTERS:]
        raise MeasurementFailed(f"the baseline cannot be installed: {' '.join(command)}:\n{output}")
