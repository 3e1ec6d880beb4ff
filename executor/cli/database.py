"""`smith db`: the schema, one step forward or back, and whether the file is sound."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from alembic.util.exc import CommandError

from executor.cli import status
from executor.cli.arguments import AsJson, confirm
from executor.cli.context import PRIVATE_UMASK, open_settings
from executor.cli.help_text import examples
from executor.cli.output import complain, say, show_json, tell
from executor.cli.store import opened
from executor.database import nodes, schema
from executor.database.engine import reading
from executor.database.tables import utc_now
from executor.errors import EXIT_DATABASE, DatabaseError
from executor.settings.settings import Settings

if TYPE_CHECKING:  # only the package database uses SQLAlchemy (import-linter)
    from sqlalchemy import Engine


@examples(
    "smith db upgrade     also done by `smith run` at its start",
)
def upgrade(as_json: AsJson = False) -> None:
    """Bring the schema to this version's; makes the database when there is none."""
    os.umask(PRIVATE_UMASK)
    with opened(open_settings(), may_create=True) as engine:
        before = schema.current_revision(engine)
        schema.upgrade(engine)
        after = schema.current_revision(engine)
    text = f"schema {after} already" if before == after else f"schema {before or 'none'} is now {after}"
    tell(text, as_json=as_json, before=before, after=after)


@examples(
    "smith db downgrade --yes           one step back, before an older version is installed",
    "smith db downgrade --to 0001 --yes",
)
def downgrade(
    to: Annotated[
        str, typer.Option("--to", metavar="REVISION", help="The revision; one step back unless told.")
    ] = "-1",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Take the schema back for an older version. What the older schema has no place for is lost."""
    settings = open_settings()
    with opened(settings) as engine:
        before = schema.current_revision(engine)
        confirm(f"Take the schema back from {before}? What the older one has no place for is lost.", yes=yes)
        with _without_agents(engine, settings), _revisions_explained():
            schema.downgrade(engine, to)
        after = schema.current_revision(engine)
    tell(f"schema {before} is now {after or 'none'}", as_json=as_json, before=before, after=after)


@examples(
    "smith db current",
    "smith db current --json",
)
def current(as_json: AsJson = False) -> None:
    """Say which schema the database has, and which this version needs."""
    with opened(open_settings()) as engine:
        found = schema.current_revision(engine)
        url = engine.url.render_as_string(hide_password=True)
    newest = schema.head_revision()
    if as_json:
        show_json({"current": found, "newest": newest, "url": url})
    else:
        say(f"schema {found or 'none'}; this version needs {newest}")


@examples(
    "smith db check     exit code 6 when something is wrong",
)
def check(as_json: AsJson = False) -> None:
    """Check schema, integrity and references."""
    with opened(open_settings()) as engine:
        problems = schema.check(engine)
    if as_json:
        show_json({"ok": not problems, "problems": problems})
    elif not problems:
        say("the database is sound and up to date")
    else:
        complain("\n".join(problems))
    if problems:
        raise typer.Exit(EXIT_DATABASE)


@contextmanager
def _revisions_explained() -> Iterator[None]:
    """Turn Alembic's opinion of a revision that somebody typed into a DatabaseError."""
    try:
        yield
    except CommandError as error:
        raise DatabaseError(f"{error}: `smith db current` names the newest revision") from error


@contextmanager
def _without_agents(engine: Engine, settings: Settings) -> Iterator[None]:
    """Keep agents out for one block. Raises DatabaseError when one is at work: it would lose its tables."""
    if engine.dialect.name == "sqlite" and engine.url.database:
        with locked(Path(f"{engine.url.database}.lock")):
            yield
        return

    with reading(engine) as session:
        for node in nodes.recent(session, status.SHOWN_NODES):
            if status.is_alive(node, utc_now(), settings.smith_lease_s):
                raise DatabaseError(f"agent {node.id} on {node.host} works with this database: stop it first")
    yield


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the lock that an agent holds on its SQLite file (`agent.database_lock`)."""
    with file.open("a", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DatabaseError(f"an agent works with this database ({file} is held): stop it first") from None
        yield
