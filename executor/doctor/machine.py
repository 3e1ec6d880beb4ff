"""Checks the database, and this machine: disk space, the run folder, ansible-core and community.proxmox."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from executor.agent.disk_space import BYTES_PER_MIB, MIN_FREE_MIB, free_bytes
from executor.database import schema
from executor.database.engine import file_system_of, open_engine, sqlite_file
from executor.doctor.checks import Area, Check, CheckFactory
from executor.errors import DatabaseError
from executor.settings.settings import Settings
from executor.version import collection_version, package_version

_DATABASE, _MACHINE = CheckFactory(Area.DATABASE), CheckFactory(Area.MACHINE)
#: The longest path of the run folder that works. ansible-core 2.21 opens a socket below this folder, and Linux limits
#: the path of a socket to 107 characters. The run's ident and the folders of ansible-core need the other 67.
MAX_RUN_DIR_CHARS = 40
#: The oldest version of ansible-core in pyproject.toml. A test compares this constant with the file.
MIN_ANSIBLE_CORE = (2, 19)
#: The versions of community.proxmox in requirements.yml: the oldest version, and the first version that is excluded. A
#: test compares this constant with the file.
COLLECTION_RANGE = ((1, 4), (3, 0))


def check_database(settings: Settings) -> Iterator[Check]:
    """Check the database. A missing SQLite file is no failure, because the first start of the agent creates it."""
    if missing := _missing_file(settings.smith_database_url):
        yield from _can_create(missing)
        return
    try:
        engine = open_engine(settings.smith_database_url)
        try:
            problems = schema.check(engine)
        finally:
            engine.dispose()
    except DatabaseError as error:
        yield _DATABASE.fail("usable", str(error))
        return
    for problem in problems:
        is_outdated = problem.startswith("schema is ")
        yield _DATABASE.warn("schema", problem) if is_outdated else _DATABASE.fail("sound", problem)
    if not problems:
        yield _DATABASE.ok("usable", f"schema {schema.head_revision()}, sound")


def _missing_file(url: str) -> Path | None:
    file = sqlite_file(url)
    return None if file is None or file.exists() else file


def _can_create(file: Path) -> Iterator[Check]:
    folder = _nearest_existing(file.parent)
    if os.access(folder, os.W_OK | os.X_OK):
        yield _DATABASE.ok("usable", f"the first start creates {file}")
    else:
        yield _DATABASE.fail("usable", f"{file} cannot be created: {folder} is not writable for uid {os.getuid()}")


def check_machine(settings: Settings) -> Iterator[Check]:
    """Check the disk space, the run folder, ansible-core and community.proxmox."""
    yield from _space(settings)
    yield from _ansible()
    yield from _collection()


def _space(settings: Settings) -> Iterator[Check]:
    for name, folder in (("data", settings.smith_data_dir), ("run", settings.smith_run_dir)):
        free_mib = free_bytes(folder) // BYTES_PER_MIB
        text = f"{folder}: {free_mib} MiB free"
        if free_mib < MIN_FREE_MIB[name]:
            yield _MACHINE.fail(f"{name} folder", f"{text}, at least {MIN_FREE_MIB[name]} needed")
        else:
            yield _MACHINE.ok(f"{name} folder", text)
    if len(str(settings.smith_run_dir)) > MAX_RUN_DIR_CHARS:
        reason = f"longer than {MAX_RUN_DIR_CHARS} characters, so ansible-core 2.21 cannot run playbooks there"
        text = f"{settings.smith_run_dir} is {reason}"
        yield _MACHINE.warn("run folder", text, "SMITH_RUN_DIR=/dev/shm/agent-smith")
    if (kind := file_system_of(_nearest_existing(settings.smith_run_dir))) not in ("tmpfs", "ramfs"):
        text = f"{settings.smith_run_dir} is on {kind or 'a disk'}, where secrets are stored for the length of a run"
        yield _MACHINE.warn("run folder", text, "SMITH_RUN_DIR=/dev/shm/agent-smith")


def _ansible() -> Iterator[Check]:
    installed, minimum = package_version("ansible-core"), ".".join(map(str, MIN_ANSIBLE_CORE))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    executable = shutil.which("ansible-playbook", path=path)
    if installed is None or executable is None:
        yield _MACHINE.fail("ansible-core", "not installed", f"pip install 'ansible-core>={minimum}'")
    elif _numbers(installed) < MIN_ANSIBLE_CORE:
        yield _MACHINE.fail("ansible-core", f"{installed} is too old", f"pip install 'ansible-core>={minimum}'")
    else:
        yield _MACHINE.ok("ansible-core", installed)


def _collection() -> Iterator[Check]:
    installed, (minimum, excluded) = collection_version(), COLLECTION_RANGE
    wanted = f"community.proxmox:>={'.'.join(map(str, minimum))},<{'.'.join(map(str, excluded))}"
    command = f"ansible-galaxy collection install '{wanted}'"
    if installed is None:
        yield _MACHINE.fail("community.proxmox", "not installed", command)
    elif not minimum <= _numbers(installed) < excluded:
        yield _MACHINE.fail("community.proxmox", f"{installed} is outside the tested range", command)
    else:
        yield _MACHINE.ok("community.proxmox", installed)


def _numbers(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version, for comparisons."""
    parts = version.split(".")[:2]
    return tuple(int("".join(char for char in part if char.isdecimal()) or 0) for part in parts)


def _nearest_existing(folder: Path) -> Path:
    """Return the folder, or its first parent that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
