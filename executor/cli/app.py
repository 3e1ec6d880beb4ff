"""Puts the commands together, and turns what they raise into one line and an exit code."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from typing import Annotated, NoReturn

import typer

from executor.cli import (
    actions,
    audit,
    backup,
    bootstrap,
    config,
    critical,
    database,
    doctor,
    drift,
    health,
    jobs,
    mappings,
    play,
    run,
    runs,
    status,
    templates,
    version,
)
from executor.cli import (
    mappings_adopt as adoption,
)
from executor.cli import (
    mappings_recall as recall,
)
from executor.cli.output import complain
from executor.errors import (
    EXIT_DATABASE,
    EXIT_FAILURE,
    EXIT_FULCRUM,
    EXIT_PROXMOX,
    EXIT_SETTINGS,
    DatabaseError,
    FulcrumError,
    JobError,
    SettingsError,
    SmithError,
)
from executor.redaction import redactor

EXAMPLES = """\
\b
Examples:
  smith config example > .env      what there is to set
  smith run                        carry FulcrumCore's jobs to Proxmox
  smith status                     what is waiting, working and overdue
  smith jobs list --status failed  what went wrong (smith jobs show says why)

Exit codes: 0 ok, 1 failure, 2 usage, 3 settings, 4 FulcrumCore, 5 Proxmox, 6 database, 130 interrupted.
"""


#: Wide enough for one line a command.
HELP_WIDTH = 110


def build() -> typer.Typer:
    """Return the command with everything that ships; `__main__` adds what needs the lab."""
    # Locals in a traceback would show secrets. Plain help: rich's takes longer to import than all the rest.
    app = typer.Typer(
        name="smith",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        epilog=EXAMPLES,
        rich_markup_mode=None,
        context_settings={"max_content_width": HELP_WIDTH},
    )
    app.callback()(_smith)
    app.command("run", epilog=run.EXAMPLES)(run.run)
    app.command("play", epilog=play.EXAMPLES)(play.play)
    app.command("agent-process", hidden=True)(run.agent_process)
    app.command("status", epilog=status.EXAMPLES)(status.show)
    app.command("doctor", epilog=doctor.EXAMPLES)(doctor.show)
    app.command("health", epilog=health.EXAMPLES)(health.show)
    app.command("version", epilog=version.EXAMPLES)(version.show)
    mappings.app.command("adopt", epilog=adoption.ADOPT_EXAMPLES)(adoption.adopt)
    mappings.app.command("forget", epilog=adoption.FORGET_EXAMPLES)(adoption.forget)
    mappings.app.command("recall", epilog=recall.EXAMPLES)(recall.recall)
    database.app.command("backup", epilog=backup.BACKUP_EXAMPLES)(backup.backup)
    database.app.command("restore", epilog=backup.RESTORE_EXAMPLES)(backup.restore)
    for group in (jobs, runs, mappings, drift, audit, critical, database, config, actions, templates, bootstrap):
        app.add_typer(group.app)
    return app


def _smith(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Say which version this is, and of what.", callback=version.if_asked, is_eager=True
        ),
    ] = False,
) -> None:
    """Agent Smith: FulcrumCore's VM jobs, carried to Proxmox VE as Ansible playbooks."""


def run_app(app: typer.Typer) -> NoReturn:
    """Run the command line and leave the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 must not end a command
    try:
        app(prog_name="smith")
    except SystemExit as leaving:
        _leave(leaving.code if isinstance(leaving.code, int) else EXIT_FAILURE if leaving.code else 0)
    except SmithError as error:
        # Settings are told one a line; a driver's own line breaks would only make a second, odd-looking message.
        complain(str(error) if isinstance(error, SettingsError) else " ".join(str(error).split()))
        _leave(exit_code_of(error))
    except Exception:
        # A defect of ours: its traceback may quote data.
        sys.stderr.write(redactor.redact(traceback.format_exc()))
        _leave(EXIT_FAILURE)
    _leave(0)


def exit_code_of(error: SmithError) -> int:
    """Return the exit code that tells a script who has to act."""
    if isinstance(error, JobError):
        return EXIT_PROXMOX if error.code.startswith("PVE_") else EXIT_FAILURE
    codes = ((SettingsError, EXIT_SETTINGS), (DatabaseError, EXIT_DATABASE), (FulcrumError, EXIT_FULCRUM))
    return next((code for kind, code in codes if isinstance(error, kind)), EXIT_FAILURE)


def _leave(code: int) -> NoReturn:
    """Write what is still held back; a reader that has gone away (`| head`) is no failure of ours to tell about."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or EXIT_FAILURE
    sys.exit(code)
