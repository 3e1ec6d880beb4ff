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

from executor.cli.garbage import skip_garbage_collection_at_exit
from executor.cli.lazy import TYPER_ARGUMENTS, TopLevelGroup, import_function, top_level_commands
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

#: The text at the end of `smith --help`. typer keeps the line breaks of a paragraph after `\b`.
HELP_EPILOG = """\
\b
Examples:
  smith config example > .env      an example of all settings
  smith run                        run FulcrumCore's jobs in Proxmox
  smith status                     jobs, agents, and overdue critical jobs
  smith jobs list --status failed  failed jobs (smith jobs show has the reason)

Exit codes: 0 success, 1 other failure, 2 wrong usage, 3 wrong settings, 4 FulcrumCore failed, 5 Proxmox failed,
6 database failed, 7 the command failed for some of its VMs, 130 interrupted.
"""
#: The maximum width of the help in characters. In `smith --help`, each command's line fits into this width.
HELP_WIDTH = 110


def build_root_command() -> TopLevelGroup:
    """Return the root command `smith`. A command's module is imported only when the command is called."""
    # `smith`, its groups and its commands are built with TYPER_ARGUMENTS, which disable completion. This line enables
    # completion for `smith` itself, so that only `smith` has the options --install-completion and --show-completion.
    typer_arguments = TYPER_ARGUMENTS | {"add_completion": True}
    app = typer.Typer(
        name="smith",
        cls=TopLevelGroup,
        no_args_is_help=True,
        epilog=HELP_EPILOG,
        context_settings={"max_content_width": HELP_WIDTH, "help_option_names": ["-h", "--help"]},
        **typer_arguments,
    )
    app.callback()(_global_options)
    root_command = typer.main.get_command(app)
    assert isinstance(root_command, TopLevelGroup)  # noqa: S101 (typer builds the class that `cls` names)
    root_command.commands = dict(top_level_commands())
    return root_command


def _show_version(is_set: bool) -> None:
    """Print the versions and end the process, if the option `--version` is set."""
    if is_set:
        import_function("version", "show")(as_json=False)  # the function `show` of executor/cli/version.py
        raise typer.Exit


# typer prints the docstring of this function at the beginning of `smith --help`.
def _global_options(
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
    """Run the command that the command-line arguments name, and end the process with the command's exit code."""
    _replace_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A command must not fail because the terminal's encoding lacks a character.
            stream.reconfigure(errors="backslashreplace")
    try:
        build_root_command()(prog_name="smith")
    except SystemExit as system_exit:
        if isinstance(system_exit.code, int):
            _end_process(system_exit.code)
        # SystemExit may have a text (failure) or None (success) instead of an exit code.
        _end_process(EXIT_FAILURE if system_exit.code else 0)
    except SmithError as error:
        _show_smith_error(error)
        _end_process(exit_code_of(error))
    except OSError as error:
        _show_os_error(error)
        _end_process(EXIT_FAILURE)
    except Exception:
        _show_redacted_traceback()
        _end_process(EXIT_FAILURE)
    _end_process(0)


def _replace_closed_streams() -> None:
    """Open /dev/null in place of stdout and stderr if the caller has closed them (`smith … >&-`)."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)


def _show_os_error(error: OSError) -> None:
    """Print the operating system's error in one line, preceded by the file or folder that the error names."""
    from executor.cli.output import show_error  # noqa: PLC0415 (see _show_smith_error)

    reason = error.strerror or str(error) or type(error).__name__
    files = " -> ".join(str(file) for file in (error.filename, error.filename2) if file is not None)
    show_error(f"{files}: {reason}" if files else reason)


def _show_smith_error(error: SmithError) -> None:
    """Print the error on stderr."""
    from executor.cli.output import show_error  # noqa: PLC0415 (a slow import, which `smith --help` does not need)

    # A SettingsError has one line for each wrong setting. Any other error is printed in one line: line breaks, which an
    # error text from a database driver may contain, are replaced by spaces.
    show_error(str(error) if isinstance(error, SettingsError) else " ".join(str(error).split()))


def _show_redacted_traceback() -> None:
    """Print the traceback of an exception that is a defect of Agent Smith. Secrets in the traceback are masked."""
    from executor.redaction import redactor  # noqa: PLC0415 (see _show_smith_error)

    sys.stderr.write(redactor.redact(traceback.format_exc()))


def exit_code_of(error: SmithError) -> int:
    """Return the exit code for the error. Settings, FulcrumCore, Proxmox and database have different exit codes.

    A JobError has an error code. An error code that begins with PVE_ means that a request to Proxmox failed.
    """
    if isinstance(error, JobError):
        return EXIT_PROXMOX if error.code.startswith("PVE_") else EXIT_FAILURE
    exit_codes = ((SettingsError, EXIT_SETTINGS), (DatabaseError, EXIT_DATABASE), (FulcrumError, EXIT_FULCRUM))
    return next((code for error_class, code in exit_codes if isinstance(error, error_class)), EXIT_FAILURE)


def _end_process(exit_code: int) -> NoReturn:
    """Flush stdout and end the process with the exit code.

    If stdout cannot be written, for example because a disk is full, the reason is printed, and exit code 0 becomes
    EXIT_FAILURE. No reason is printed if the reader of stdout has closed the pipe (`smith … | head`). In both cases,
    stdout is redirected to /dev/null, because Python flushes it again at exit.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            _show_os_error(error)
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        exit_code = exit_code or EXIT_FAILURE
    skip_garbage_collection_at_exit()
    sys.exit(exit_code)
