"""Builds and runs the command line of `smith`, and turns an exception into an error line and an exit code."""

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
from executor.cli.output import show_error
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
  smith config example > .env      an example of all settings
  smith run                        run FulcrumCore's jobs in Proxmox
  smith status                     jobs, agents, and overdue critical jobs
  smith jobs list --status failed  failed jobs (smith jobs show has the reason)

Exit codes: 0 ok, 1 failure, 2 usage, 3 settings, 4 FulcrumCore, 5 Proxmox, 6 database, 130 interrupted.
"""
#: The width of the help in characters. With it, each command's help line fits into one line.
HELP_WIDTH = 110


def build() -> CommandLine:
    """Return the command line with all commands. A command's module is imported only when the command is called."""
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
    assert isinstance(command_line, CommandLine)  # noqa: S101 (the argument `cls` above)
    command_line.commands = {**top_level_commands()}
    return command_line


def _show_version(is_set: bool) -> None:
    """Print the versions and end the process, if the option `--version` is set."""
    if is_set:
        function_at("version", "show")(as_json=False)
        raise typer.Exit


def _smith(
    _version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Show the versions of Agent Smith and of its dependencies.",
            callback=_show_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Agent Smith: runs FulcrumCore's VM jobs as Ansible playbooks against Proxmox VE."""


def main() -> NoReturn:
    """Run the command that the arguments name, and end the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A command must not fail because the terminal's encoding lacks a character.
            stream.reconfigure(errors="backslashreplace")
    try:
        build()(prog_name="smith")
    except SystemExit as request:
        _exit(request.code if isinstance(request.code, int) else EXIT_FAILURE if request.code else 0)
    except SmithError as error:
        # A SettingsError has one line for each setting. Other errors are printed in one line: the text of a database
        # driver may contain line breaks.
        show_error(str(error) if isinstance(error, SettingsError) else " ".join(str(error).split()))
        _exit(exit_code_of(error))
    except Exception:
        # Any other exception is a defect of Agent Smith. The traceback may contain secrets, so it is redacted.
        sys.stderr.write(redactor.redact(traceback.format_exc()))
        _exit(EXIT_FAILURE)
    _exit(0)


def exit_code_of(error: SmithError) -> int:
    """Return the exit code for the area of the error: settings, FulcrumCore, Proxmox, database, or any other."""
    if isinstance(error, JobError):
        return EXIT_PROXMOX if error.code.startswith("PVE_") else EXIT_FAILURE
    codes = ((SettingsError, EXIT_SETTINGS), (DatabaseError, EXIT_DATABASE), (FulcrumError, EXIT_FULCRUM))
    return next((code for kind, code in codes if isinstance(error, kind)), EXIT_FAILURE)


def _exit(code: int) -> NoReturn:
    """Flush stdout and end the process with the exit code.

    If the reader of stdout has closed the pipe (`smith … | head`), no error is printed. stdout is then redirected to
    /dev/null, because Python flushes it again at exit.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or EXIT_FAILURE
    sys.exit(code)
