"""This machine: the database, disk space, and the tools that runs need."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy.engine import make_url

from executor.agent.disk_space import BYTES_PER_MIB, MIN_FREE_MIB, free_bytes
from executor.database import schema
from executor.database.engine import file_system_of, open_engine
from executor.doctor.checks import Area, Check, Maker
from executor.errors import DatabaseError
from executor.settings.settings import Settings
from executor.version import collection_version, package_version

_DATABASE, _MACHINE = Maker(Area.DATABASE), Maker(Area.MACHINE)
#: A run's ident and what ansible-core 2.21 puts behind it take the rest of the 107 characters of a socket's path.
LONGEST_RUN_DIR = 40
#: As pyproject.toml and requirements.yml have it; a test compares them.
LEAST_ANSIBLE_CORE = (2, 19)
COLLECTION_RANGE = ((1, 4), (3, 0))  #: from, and below


def look_at_database(settings: Settings) -> Iterator[Check]:
    """Look at the database; one that is not there yet is made by the first start, and not by us."""
    if absent := _absent_file(settings.smith_database_url):
        yield from _place_for(absent)
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
        is_old = problem.startswith("schema is ")
        yield _DATABASE.warn("schema", problem) if is_old else _DATABASE.fail("sound", problem)
    if not problems:
        yield _DATABASE.ok("usable", f"schema {schema.head_revision()}, sound")


def _absent_file(url: str) -> Path | None:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        return None
    file = Path(parsed.database)
    return None if file.exists() else file


def _place_for(file: Path) -> Iterator[Check]:
    folder = _existing(file.parent)
    if os.access(folder, os.W_OK | os.X_OK):
        yield _DATABASE.ok("usable", f"{file} is made by the first start")
    else:
        yield _DATABASE.fail("usable", f"{file} cannot be made: {folder} is not writable for uid {os.getuid()}")


def look_at_machine(settings: Settings) -> Iterator[Check]:
    """Look at disks and tools."""
    yield from _space(settings)
    yield from _ansible()
    yield from _collection()


def _space(settings: Settings) -> Iterator[Check]:
    for name, folder in (("data", settings.smith_data_dir), ("run", settings.smith_run_dir)):
        free_mib = free_bytes(folder) // BYTES_PER_MIB
        text = f"{folder}: {free_mib} MiB are free"
        if free_mib < MIN_FREE_MIB[name]:
            yield _MACHINE.fail(f"{name} folder", f"{text}, less than {MIN_FREE_MIB[name]}")
        else:
            yield _MACHINE.ok(f"{name} folder", text)
    if len(str(settings.smith_run_dir)) > LONGEST_RUN_DIR:
        text = (
            f"{settings.smith_run_dir} is longer than {LONGEST_RUN_DIR} characters: ansible-core 2.21 could run nothing"
        )
        yield _MACHINE.warn("run folder", text, "SMITH_RUN_DIR=/dev/shm/agent-smith")
    if (kind := file_system_of(_existing(settings.smith_run_dir))) not in ("tmpfs", "ramfs"):
        text = f"{settings.smith_run_dir} lies on {kind or 'a disk'}: a run's secrets are written there until it ends"
        yield _MACHINE.warn("run folder", text, "SMITH_RUN_DIR=/dev/shm/agent-smith")


def _ansible() -> Iterator[Check]:
    found, least = package_version("ansible-core"), ".".join(map(str, LEAST_ANSIBLE_CORE))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    executable = shutil.which("ansible-playbook", path=path)
    if found is None or executable is None:
        yield _MACHINE.fail("ansible-core", "is not installed", f"pip install 'ansible-core>={least}'")
    elif _numbers(found) < LEAST_ANSIBLE_CORE:
        yield _MACHINE.fail("ansible-core", f"{found} is too old", f"pip install 'ansible-core>={least}'")
    else:
        yield _MACHINE.ok("ansible-core", found)


def _collection() -> Iterator[Check]:
    found, (least, below) = collection_version(), COLLECTION_RANGE
    wanted = f"community.proxmox:>={'.'.join(map(str, least))},<{'.'.join(map(str, below))}"
    install = f"ansible-galaxy collection install '{wanted}'"
    if found is None:
        yield _MACHINE.fail("community.proxmox", "is not installed", install)
    elif not least <= _numbers(found) < below:
        yield _MACHINE.fail("community.proxmox", f"{found} is not what the playbooks are tested with", install)
    else:
        yield _MACHINE.ok("community.proxmox", found)


def _numbers(version: str) -> tuple[int, ...]:
    heads = version.split(".")[:2]
    return tuple(int("".join(char for char in head if char.isdecimal()) or 0) for head in heads)


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
