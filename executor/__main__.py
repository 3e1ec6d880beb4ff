"""Runs the command `smith`, also for `python -m executor`."""

from __future__ import annotations

from typing import NoReturn

from executor.cli.garbage import pause_collection


def main() -> NoReturn:
    """Run the command that the command-line arguments name, and end the process with its exit code."""
    pause_collection()
    from executor.cli.app import main as run_command_line  # noqa: PLC0415 (after the pause: this imports typer)

    run_command_line()


if __name__ == "__main__":
    main()
