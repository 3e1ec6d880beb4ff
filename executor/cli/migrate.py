"""`smith db migrate` copies all rows to another database and seals this database; `smith db unseal` removes the seal.

This database is the database in SMITH_DATABASE_URL. In the code, it is `source`, and the other database is `target`. A
sealed database refuses every change. A move is one migration; the table `moves` has a row for it.

Every user of the machine can read a command's arguments. So a URL with a password is refused as an argument, and read
from a file, an environment variable or the terminal.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from executor.agent.crash_points import crash_if_requested
from executor.cli.arguments import AsJson, confirm
from executor.cli.context import PRIVATE_UMASK, open_settings
from executor.cli.database import holding_database_lock, require_no_running_agent, requiring_stopped_agents
from executor.cli.help_text import examples
from executor.cli.init_answers import Prompter
from executor.cli.output import show_outcome, show_text
from executor.cli.store import open_database
from executor.database import audit, manual_runs, move_queries, moves, revisions, schema, table_copy
from executor.database.engine import open_engine, read_only_session, sqlite_file, transaction
from executor.errors import DatabaseError
from executor.redaction import redactor
from executor.settings.masking import passwords_in
from executor.settings.settings import Settings

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

    from executor.database.tables.moves import Move

#: The environment variable that contains the URL of the other database.
TARGET_VARIABLE = "MIGRATE_TO_URL"
#: The remedy in the error message if the copy of the rows fails.
HOW_TO_CONTINUE = "repeat this command to copy all rows again, or run `smith db unseal` to remove the seal"


@examples(
    "smith db migrate --to-file /etc/agent-smith/new_database_url    with all agents stopped",
    "smith db migrate --to postgresql://smith@db.example.net/smith   the password is in ~/.pgpass",
    "smith db migrate --to sqlite:////var/lib/agent-smith/smith.db   back to SQLite",
)
def migrate(
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="URL", help="The URL of the other database. It must not contain a password."),
    ] = None,
    to_file: Annotated[
        Path | None,
        typer.Option(
            "--to-file",
            metavar="FILE",
            help=f"A file with the URL. Default: the environment variable {TARGET_VARIABLE}. Without both, "
            "the command asks for the URL.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Move the database from SQLite to PostgreSQL, or back.

    All agents must be stopped, and the other database must be empty. This database is sealed: agents and commands can
    no longer change it. Then every row is copied and compared. After an interruption, repeat the command.
    """
    settings = open_settings()
    target_url = _read_target_url(to, to_file)
    if move_queries.url_without_password(target_url) == move_queries.url_without_password(settings.smith_database_url):
        raise typer.BadParameter("the other database is this database (SMITH_DATABASE_URL)")
    os.umask(PRIVATE_UMASK)
    with ExitStack() as stack:
        source = stack.enter_context(open_database(settings))
        target = stack.enter_context(_open_target(target_url))
        target_url_without_password = move_queries.url_without_password(target.url)
        # With SQLite, a lock is held until the `with` block ends, so no agent can start.
        stack.enter_context(requiring_stopped_agents(source, settings))
        _require_current_schema(source)
        move = _find_earlier_move(source, target_url_without_password)
        if move is None:
            table_copy.refuse_nonempty_database(target)
            confirm(f"Seal this database, and copy all of its rows to {target_url_without_password}?", yes=yes)
            # On PostgreSQL, an agent can start after the check by `requiring_stopped_agents`. So `moves.seal` checks
            # again: it calls `refuse_if_in_use`.
            refuse_if_in_use = partial(_refuse_database_in_use, settings=settings)
            with transaction(source) as session:
                move = moves.seal(
                    session,
                    target_url=target_url_without_password,
                    who=audit.operator_name(),
                    refuse_if_in_use=refuse_if_in_use,
                )
        crash_if_requested("source_sealed")  # tests kill the process here
        row_counts = _copy_rows(source, target, move, is_quiet=as_json)
        crash_if_requested("target_committed")
        with transaction(source) as session:
            moves.mark_move_completed(session, move.id)
    text = f"all rows are in {target_url_without_password}: set SMITH_DATABASE_URL to this URL, and start the agents"
    show_outcome(text, as_json=as_json, url=target_url_without_password, move=move.id, rows=row_counts)


@examples("smith db unseal    to use this database again")
def unseal(
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Stored in the audit log (`smith audit list`).")
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let a database that `smith db migrate` has sealed accept changes again."""
    settings = open_settings()
    with open_database(settings) as engine, requiring_stopped_agents(engine, settings):
        with read_only_session(engine) as session:
            move = move_queries.find_sealing_move(session.connection())
        if move is None:
            show_outcome("the database is not sealed", as_json=as_json, was_sealed=False, url=None)
            return
        warning = "The move is not completed"
        if move.completed_at is not None:
            warning = (
                "The move is completed. Agents must not use both databases, because they would run jobs twice. Changes "
                "in the other database since the move are missing in this database"
            )
        confirm(f"Unseal the database? A move to {move.url} began at {move.started_at:%F %H:%M}Z. {warning}", yes=yes)
        with transaction(engine) as session:
            was_sealed = moves.unseal(session, who=audit.operator_name(), reason=reason) is not None
    text = f"the database can be used again; let no agent use {move.url}"
    show_outcome(text, as_json=as_json, was_sealed=was_sealed, url=move.url)


def _read_target_url(to: str | None, file: Path | None) -> str:
    """Return the URL of the other database, and register its passwords with the redactor.

    Raises BadParameter if --to and --to-file are both given, or if the URL in --to contains a password.
    """
    if to is None:
        prompter = Prompter(skips_questions_with_default=False)  # has no effect on `ask_secret`
        return prompter.ask_secret(
            "URL of the other database",
            file=file,
            variable=TARGET_VARIABLE,
            option="--to-file",
            secrets_in=passwords_in,  # finds the parts of the URL that are secret
        )
    if file is not None:
        raise typer.BadParameter("give only one of --to and --to-file")
    if any(passwords_in(to)):
        redactor.add(*passwords_in(to))
        text = f"every user of this machine can read the password in an argument: use --to-file or {TARGET_VARIABLE}"
        raise typer.BadParameter(text)
    return to


@contextmanager
def _open_target(url: str) -> Iterator[Engine]:
    """Open the other database. If its schema is missing or older than the installed Agent Smith needs, upgrade it.

    Raises DatabaseError if a newer version of Agent Smith or another program has created the schema.

    If the other database is a SQLite file, its lock is held during the block, so that no agent uses the database.
    """
    engine = open_engine(url)
    file = sqlite_file(url)
    with ExitStack() as stack:
        stack.callback(engine.dispose)
        if file is not None:
            stack.enter_context(holding_database_lock(Path(f"{file}.lock")))
        move_queries.refuse_sealed_database(engine)
        schema.refuse_newer_or_foreign_schema(engine)
        if schema.current_revision(engine) != revisions.head_revision():
            table_copy.refuse_nonempty_database(engine)
            schema.upgrade(engine)
        yield engine


def _require_current_schema(source: Engine) -> None:
    """Raise DatabaseError unless this database has the schema that the installed Agent Smith needs."""
    schema.refuse_newer_or_foreign_schema(source)
    if schema.current_revision(source) != revisions.head_revision():
        raise DatabaseError("the database has an older schema: run `smith db upgrade` first")


def _find_earlier_move(source: Engine, target_url: str) -> Move | None:
    """Return the move to this target that an earlier command has begun, or None if this database is not sealed.

    Raises DatabaseError if this database is sealed for a move to another target.
    """
    with read_only_session(source) as session:
        move = move_queries.find_sealing_move(session.connection())
    if move is not None and move.url != target_url:
        raise DatabaseError(
            f"a move to {move.url} has sealed this database: repeat the command with this URL, or run `smith db unseal`"
        )
    return move


def _refuse_database_in_use(session: Session, settings: Settings) -> None:
    """Raise DatabaseError if an agent uses this database, or if a command such as `smith play` runs a playbook."""
    require_no_running_agent(session, settings)
    if services := manual_runs.services_with_run_in_progress(session):
        raise DatabaseError(
            f"an operator runs a playbook for service {min(services)}: wait until `smith runs list` shows that the run "
            "has ended"
        )


def _copy_rows(source: Engine, target: Engine, move: Move, *, is_quiet: bool) -> dict[str, int]:
    """Copy the rows, and return the number of rows of each table. Return {} if an earlier command has copied them."""

    def on_table_copied(table: str, row_count: int) -> None:
        crash_if_requested("rows_copied", table)

    if table_copy.is_copy_committed(target, move.id):
        return {}
    try:
        contents_by_table = table_copy.copy_tables(source, target, move, on_table_copied)
    except DatabaseError as error:
        raise DatabaseError(
            f"{error}\nthis database is sealed, and the other database is empty: {HOW_TO_CONTINUE}"
        ) from error
    if not is_quiet:
        for table, content in contents_by_table.items():
            show_text(f"{table}: {content.row_count} rows, the same digest in both databases ({content.digest:x})")
    return {table: content.row_count for table, content in contents_by_table.items()}
