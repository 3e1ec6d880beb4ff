"""`smith actions test`: runs the tests of an action in the folder SMITH_ACTIONS_PATH with `smith lab-test`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from executor.cli.action_files import test_file_path
from executor.cli.actions import ActionsFolderNotSet, find_action
from executor.cli.completion import complete_action
from executor.cli.context import open_settings
from executor.cli.entry_points import import_entry_point_command
from executor.cli.help_text import examples
from executor.errors import SmithError

#: The command that runs tests in the lab, and the Python distribution that contains this command.
LAB_COMMAND, LAB_DISTRIBUTION = "lab-test", "agent-smith-lab"


class LabNotInstalled(SmithError):
    """The Python distribution that contains `smith lab-test` is not installed."""


class TestsMissing(SmithError):
    """The file with the tests of the action does not exist. `smith actions new` writes this file for a new action."""


@examples(
    "smith actions test attach-iso",
    "smith actions test attach-iso --junit report.xml --html report.html",
    "smith actions test attach-iso -k another_service --keep",
)
def run_tests(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="One of your own actions.", autocompletion=complete_action)
    ],
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write a JUnit report.")] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write an HTML report.")] = None,
    keyword: Annotated[
        str, typer.Option("-k", metavar="EXPRESSION", help="Run only the tests that match (as pytest's -k).")
    ] = "",
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the tests' VMs; remove them later with `smith lab-sweep`.")
    ] = False,
) -> None:
    """Run the tests of one of your own actions in a lab (a Proxmox server for tests, or a stand-in).

    The lab is the Proxmox server that the environment variables LAB_PROXMOX_* name. If these variables are not set, the
    lab is a Proxmox stand-in on this machine. `smith actions new` writes the tests into the folder tests/ in
    SMITH_ACTIONS_PATH. The command runs `smith lab-test` with the file of the tests, and returns its exit code.
    """
    file = _find_test_file(name)
    lab_test = import_entry_point_command(LAB_COMMAND)  # None if LAB_DISTRIBUTION, which adds the command, is missing
    if lab_test is None:
        raise LabNotInstalled(
            "`smith actions test` needs `smith lab-test`, which is not installed: install the wheel "
            f"{LAB_DISTRIBUTION} of your release with pip, or run install.sh of the release's offline bundle with "
            "--with-lab"
        )
    lab_test(paths=[file], junit=junit, html=html, keyword=keyword, keep=keep)


def _find_test_file(name: str) -> Path:
    """Return the file with the tests of an action.

    Raises BadParameter for a built-in action. Raises SmithError if the action cannot be used or has no tests.
    """
    action, folder = find_action(name), open_settings().smith_actions_path
    if action.is_ours:  # Agent Smith contains the action
        raise typer.BadParameter(f"{name} is a built-in action: `smith lab-test -k {name}` tests it")
    if folder is None:  # cannot happen, because find_action has found the action in SMITH_ACTIONS_PATH
        raise ActionsFolderNotSet("SMITH_ACTIONS_PATH is not set")
    file = folder / test_file_path(name)
    if not file.is_file():
        raise TestsMissing(
            f"the action {name} has no tests: there is no file {file}. docs/lab_test.md says how to write tests"
        )
    return file
