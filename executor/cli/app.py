"""Puts the commands together, and turns what they raise into one line and an exit code."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from typing import Annotated, NoReturn

import typer
import typer.main

from executor.cli.lazy import STYLE, CommandLine, function_at, top_level_commands
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


def build() -> CommandLine:
    """Return the command line with every command, none of them loaded."""
    app = typer.Typer(
        name="smith",
        cls=CommandLine,
        no_args_is_help=True,
        epilog=EXAMPLES,
        context_settings={"max_content_width": HELP_WIDTH},
        **STYLE | {"add_completion": True},
    )
    app.callback()(_smith)
    command_line = typer.main.get_command(app)
    assert isinstance(command_line, CommandLine)  # noqa: S101 (cls says so)
    command_line.commands = {**top_level_commands()}
    return command_line


def _show_version(wanted: bool) -> None:
    """Answer `smith --version` and leave."""
    if wanted:
        function_at("version", "show")(as_json=False)
        raise typer.Exit


def _smith(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Say which version this is, and of what.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Agent Smith: FulcrumCore's VM jobs, carried to Proxmox VE as Ansible playbooks."""


def main() -> NoReturn:
    """Run the command that the arguments name, and leave the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 must not end a command
    try:
        build()(prog_name="smith")
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
