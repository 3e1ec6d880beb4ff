"""`smith db upgrade` and `downgrade`: upgrade and downgrade the schema of the database."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from alembic.util.exc import CommandError

from executor.agent.database_lock import open_lock_file, write_lock_holder
from executor.cli.arguments import AsJson, confirm
from executor.cli.context import PRIVATE_UMASK, open_settings
from executor.cli.help_text import examples
from executor.cli.output import show_outcome
from executor.cli.store import open_database
from executor.database import agent_queries, move_queries, revisions, schema
from executor.database.engine import read_only_session
from executor.database.times import utc_now
from executor.errors import DatabaseError
from executor.settings.settings import Settings
from executor.views.agent_liveness import is_alive

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

#: Alembic's name of the revision before the current revision.
PREVIOUS_REVISION = "-1"


@examples(
    "smith db upgrade    `smith run` also does this at its start",
)
def upgrade_schema(as_json: AsJson = False) -> None:
    """Upgrade the schema; create the database if there is none."""
    os.umask(PRIVATE_UMASK)
    with open_database(open_settings(), may_create=True) as engine:
        # `smith db migrate` copies the rows of a database to another one, and seals the original database.
        # A sealed database must not change. The next line raises DatabaseError if this database is sealed.
        move_queries.refuse_sealed_database(engine)
        old_revision = schema.current_revision(engine)
        schema.upgrade(engine)
        new_revision = schema.current_revision(engine)
    if old_revision == new_revision:
        text = f"the schema has revision {new_revision} already"
    elif old_revision is None:
        text = f"the schema was created with revision {new_revision}"
    else:
        text = f"the schema was upgraded from revision {old_revision} to {new_revision}"
    show_outcome(text, as_json=as_json, before=old_revision, after=new_revision)


@examples(
    "smith db downgrade --yes           to the previous revision, before you install an older version",
    "smith db downgrade --to 0001 --yes",
)
def downgrade_schema(
    target_revision: Annotated[
        str,
        typer.Option(
            "--to", metavar="REVISION", help="Revision of the schema to downgrade to; default: the previous revision."
        ),
    ] = PREVIOUS_REVISION,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Downgrade the schema for an older version of Agent Smith.

    Data that the older schema cannot store is lost.
    """
    settings = open_settings()
    with open_database(settings) as engine:
        move_queries.refuse_sealed_database(engine)
        old_revision = schema.current_revision(engine)
        confirm(
            f"Downgrade the schema from revision {old_revision}? Data that the older schema cannot store is lost.",
            yes=yes,
        )
        # `requiring_stopped_agents` checks that no agent runs. With PostgreSQL, an agent may start after this check, so
        # the transaction of the downgrade repeats the check. With SQLite, no agent can start, because this command
        # holds the database's lock.
        is_postgresql = engine.dialect.name == "postgresql"
        check_in_transaction = partial(require_no_running_agent, settings=settings) if is_postgresql else None
        with requiring_stopped_agents(engine, settings), _explaining_rejected_revision():
            schema.downgrade(engine, target_revision, check_in_transaction=check_in_transaction)
        new_revision = schema.current_revision(engine)
    text = f"the schema was downgraded from revision {old_revision} to {new_revision or 'none'}"
    show_outcome(text, as_json=as_json, before=old_revision, after=new_revision)


@contextmanager
def _explaining_rejected_revision() -> Iterator[None]:
    """Convert Alembic's error about the revision that the operator named to a DatabaseError with the remedy."""
    try:
        yield
    except CommandError as error:
        oldest, newest = min(revisions.revisions_of_this_program()), revisions.head_revision()
        raise DatabaseError(
            f"{error}: --to needs one of the revisions {oldest} to {newest} (`smith db current` shows the current one)"
        ) from error


@contextmanager
def requiring_stopped_agents(engine: Engine, settings: Settings) -> Iterator[None]:
    """Raise DatabaseError, and do not execute the `with` block, when an agent uses the database.

    With SQLite, the lock of the database is held during the block, so no agent can start in the meantime. With
    PostgreSQL there is no such lock. The running agents are found in the table `nodes`, which has one row for each
    agent process.
    """
    if engine.dialect.name == "sqlite" and engine.url.database:
        with holding_database_lock(Path(f"{engine.url.database}.lock")):
            yield
        return

    with read_only_session(engine) as session:
        require_no_running_agent(session, settings)
    yield


def require_no_running_agent(session: Session, settings: Settings) -> None:
    """Raise DatabaseError if an agent is running."""
    for agent in agent_queries.processes_without_stop_time(session):
        if is_alive(agent, utc_now(), settings.smith_lease_s):
            raise DatabaseError(f"agent {agent.id} on {agent.host} uses this database: stop the agent first")


@contextmanager
def holding_database_lock(file: Path) -> Iterator[None]:
    """Hold the lock of the SQLite database, so that no agent uses the database during the `with` block.

    `file` is the database's lock file, which each agent locks while it runs. An agent that is started during the block
    fails with an error that names our process, because our process id and host are written to the file. Raises
    DatabaseError when an agent is running.
    """
    with open_lock_file(file) as lock_file:
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DatabaseError(f"an agent uses this database ({file} is locked): stop the agent first") from None
        write_lock_holder(lock_file)
        yield
