"""`smith db current` and `smith db check`: show the schema's revision, and check the database."""

from __future__ import annotations

import typer

from executor.cli.arguments import AsJson
from executor.cli.context import open_settings
from executor.cli.help_text import examples
from executor.cli.output import show_error, show_json, show_text
from executor.cli.store import open_database
from executor.database import database_check, revisions, schema
from executor.errors import EXIT_DATABASE


@examples(
    "smith db current",
    "smith db current --json",
)
def show_revisions(as_json: AsJson = False) -> None:
    """Show the schema's revision, and the revision that Agent Smith needs."""
    with open_database(open_settings()) as engine:
        revision = schema.current_revision(engine)
        url = engine.url.render_as_string(hide_password=True)
    needed_revision = revisions.head_revision()
    if as_json:
        show_json({"current": revision, "newest": needed_revision, "url": url})
    else:
        show_text(f"schema revision: {revision or 'none'}; this version of Agent Smith needs {needed_revision}")


@examples(
    "smith db check    # exit code 6 when a check fails",
)
def check_database(as_json: AsJson = False) -> None:
    """Check the schema, the integrity and the foreign keys."""
    with open_database(open_settings()) as engine:
        problems = database_check.find_problems(engine)
    if as_json:
        show_json({"ok": not problems, "problems": problems})
    elif not problems:
        show_text("the database has no errors and is up to date")
    else:
        show_error("\n".join(problems))
    if problems:
        raise typer.Exit(EXIT_DATABASE)
