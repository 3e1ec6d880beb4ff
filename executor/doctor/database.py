"""Checks the database: access, schema and integrity. Also checks the owner of the files in the database's folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from executor.database import agent_queries, database_check, move_queries, revisions
from executor.database.engine import can_begin_write, open_engine, read_only_session, sqlite_file
from executor.doctor.checks import Area, CheckResult, ResultFactory, command_line
from executor.doctor.folders import mount_point, nearest_existing_folder, read_only_reason
from executor.errors import DatabaseError
from executor.settings.settings import Settings

_RESULT_FACTORY = ResultFactory(Area.DATABASE)
#: The maximum time that the check waits for the write lock of the SQLite file. No agent's transaction takes that long.
MAX_LOCK_WAIT_S = 2.0
RESTORE_REMEDY = "smith db restore <backup>"
#: The remedies for failures of the database. Each key is a part of an error text. A remedy is shown if the error text
#: contains the key.
REMEDY_BY_ERROR_TEXT = {
    # "the database has schema A, which this version (newest schema: B) does not know"
    "which this version (newest": "run the newer Agent Smith; or, with the newer version: smith db downgrade",
    "tables of another program": "SMITH_DATABASE_URL=sqlite:///<file>",  # `<file>`: not the current file
    "file is not a database": RESTORE_REMEDY,
    "malformed": RESTORE_REMEDY,
    "disk I/O error": "check the disk: journalctl -k; then smith db check",
    "psycopg": "pip install 'agent-smith[postgres]'",
    "not readable and writable": "run smith doctor as the user of agent-smith.service: smith doctor --as-service",
}


def check_database(settings: Settings) -> Iterator[CheckResult]:
    """Check the database. A missing SQLite file is no failure, because the agent creates it at its first start."""
    file = sqlite_file(settings.smith_database_url)
    if file is not None:
        yield from _check_owner(file.parent)
        if (reason := read_only_reason(nearest_existing_folder(file))) is not None:
            remedy = command_line("mount", "-o", "remount,rw", mount_point(nearest_existing_folder(file)))
            yield _RESULT_FACTORY.fail("usable", f"{file} cannot be written: {reason}", remedy)
            return
        if not file.exists():
            yield _check_that_file_can_be_created(file)
            return
    try:
        yield from _check_content(settings, file)
    except DatabaseError as error:
        yield _RESULT_FACTORY.fail("usable", str(error), *_remedies(str(error), file))


def _check_content(settings: Settings, file: Path | None) -> Iterator[CheckResult]:
    """Check the write lock (only SQLite has it), the schema and the integrity. Raises DatabaseError.

    Also warn if an operator has paused the agents with `smith pause`: paused agents claim no jobs.
    """
    engine = open_engine(settings.smith_database_url)
    try:
        if not can_begin_write(engine, within_s=MAX_LOCK_WAIT_S):
            text = f"{file} is locked by another program for longer than {MAX_LOCK_WAIT_S:.0f} s"
            yield _RESULT_FACTORY.fail(
                "usable", text, f"end the program that has opened the file: {command_line('fuser', '-v', file)}"
            )
            return
        # `smith db migrate` moves all rows to another database and seals the first database. A sealed database refuses
        # all changes. If the database is sealed, `why_sealed` is one of the `problems`. Otherwise, `why_sealed` is ''.
        problems, why_sealed = database_check.find_problems(engine), move_queries.why_sealed(engine)
        pause = None
        if not problems:
            with read_only_session(engine) as session:  # a transaction that only reads
                pause = agent_queries.find_pause(session)
    finally:
        engine.dispose()
    for problem in problems:
        # "schema is A, this version needs B: …" is only a warning: the agent upgrades an old schema at its start.
        if problem.startswith("schema is "):
            yield _RESULT_FACTORY.warn("schema", problem, "smith db upgrade")
        elif problem == why_sealed:
            remedy = "SMITH_DATABASE_URL=<the database to which the rows were moved>; or smith db unseal"
            yield _RESULT_FACTORY.fail("usable", problem, remedy)
        else:
            yield _RESULT_FACTORY.fail("integrity", problem, RESTORE_REMEDY)
    if not problems:
        yield _RESULT_FACTORY.ok("usable", f"schema {revisions.head_revision()}, no damage found")
    if pause is not None:
        text = f"no job is claimed: paused since {pause.since:%Y-%m-%d %H:%M:%S}Z by {pause.who}: {pause.reason}"
        yield _RESULT_FACTORY.warn("pause", text, "smith resume")


def _remedies(text: str, file: Path | None) -> list[str]:
    remedies = [remedy for text_part, remedy in REMEDY_BY_ERROR_TEXT.items() if text_part in text]
    if remedies or file is not None:
        return remedies or ["smith db check"]
    return ["check SMITH_DATABASE_URL, and that the server runs and accepts the user"]


def _check_owner(folder: Path) -> Iterator[CheckResult]:
    """Check that each file in the database's folder has the owner of the folder, normally the agent's user."""
    try:
        owner = folder.stat().st_uid
        files = {file: file.lstat().st_uid for file in sorted(folder.iterdir())}
    except OSError:
        return  # the folder does not exist or cannot be read; other checks report this
    for file, uid in files.items():
        if uid != owner:
            owners = f"{file} belongs to uid {uid}, and its folder to uid {owner}"
            text = f"{owners}, so the agent may be unable to use the file"
            yield _RESULT_FACTORY.fail("owner", text, command_line("chown", f"--reference={folder}", file))


def _check_that_file_can_be_created(file: Path) -> CheckResult:
    folder = nearest_existing_folder(file.parent)
    if os.access(folder, os.W_OK | os.X_OK):
        return _RESULT_FACTORY.ok("usable", f"the agent creates {file} at its first start")
    uid, owner = os.getuid(), folder.stat().st_uid
    text = f"{file} cannot be created: {folder} belongs to uid {owner}, and is not writable for uid {uid}"
    return _RESULT_FACTORY.fail(
        "usable",
        text,
        command_line("chown", uid, folder),
        "or check as the user of agent-smith.service: smith doctor --as-service",
    )
