"""Builds typer's commands from the table of commands. A command's module is imported only when the command is called.

The table of commands is `executor.cli.commands`. Other Python distributions can add commands as entry points. An
extension is an entry point that the table lists, so that the help shows it even if its distribution is not installed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import typer
import typer.main
from typer.core import TyperCommand, TyperGroup

from executor.cli.commands import COMMANDS, EXTENSIONS, GROUPS, Command, Extension, Group
from executor.cli.garbage import resume_garbage_collection
from executor.cli.help_text import examples_section_of
from executor.errors import SmithError

#: The arguments of every typer.Typer. Without markup and pretty exceptions, typer does not import rich. This import
#: takes longer than all other imports that the help needs.
TYPER_ARGUMENTS: dict[str, Any] = {"rich_markup_mode": None, "add_completion": False, "pretty_exceptions_enable": False}


class DistributionNotInstalled(SmithError):
    """The command belongs to a distribution that is not installed."""


class LazyCommand(TyperCommand):
    """A placeholder for a command or group, with the name and the help line from the table of commands.

    When the command is called, or its own `--help` is shown, the placeholder imports and builds the real command.
    """

    def __init__(
        self, name: str, help_line: str, load_real_command: Callable[[], Any], *, hidden: bool = False
    ) -> None:
        """Store `load_real_command`, which imports, builds and returns the real command."""
        super().__init__(name, help=help_line, hidden=hidden, rich_markup_mode=None)
        self.load_real_command = load_real_command

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Return the context of the real command, so that typer continues with the real command."""
        return self.load_real_command().make_context(info_name, args, parent, **extra)


class TopLevelGroup(TyperGroup):
    """The top level of `smith`: the commands of the table, and the entry points of other Python distributions."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command with this name, or None when neither the table nor an entry point has the name."""
        return super().get_command(ctx, cmd_name) or _load_entry_point_command(cmd_name)


def top_level_commands() -> dict[str, LazyCommand]:
    """Return the commands and groups of the top level, in the order of the help, without importing their modules."""
    commands = {command.name: _make_lazy_command(command) for command in COMMANDS if not command.group}
    for extension in EXTENSIONS:
        commands[extension.name] = LazyCommand(extension.name, extension.help, partial(_load_extension, extension))
    for group in GROUPS:
        commands[group.name] = LazyCommand(group.name, group.help, partial(_load_group, group))
    return commands


def import_function(module_name: str, function_name: str) -> Callable[..., Any]:
    """Import `executor.cli.<module_name>`, and return its function `function_name`.

    Then turn on Python's garbage collector. The start of `smith` turns it off, because imports are faster without it.
    """
    function: Callable[..., Any] = getattr(importlib.import_module(f"executor.cli.{module_name}"), function_name)
    resume_garbage_collection()
    return function


def _make_lazy_command(command: Command) -> LazyCommand:
    return LazyCommand(command.name, command.help, partial(_load_command, command), hidden=command.is_hidden)


def _load_command(command: Command) -> Any:
    return _build_command(command.name, import_function(command.module, command.function))


def _build_command(name: str, function: Callable[..., Any]) -> Any:
    """Return a typer command that calls the function. typer reads the options and the help from the function."""
    app = typer.Typer(**TYPER_ARGUMENTS)
    app.command(name, epilog=examples_section_of(function))(function)
    return typer.main.get_command(app)


def _load_group(group: Group) -> TyperGroup:
    """Return the group with its commands, without importing the modules of the commands."""
    has_function = bool(group.function)  # The function runs for `smith GROUP` without a command.
    app = typer.Typer(
        name=group.name,
        help=group.help,
        epilog=group.examples,
        no_args_is_help=not has_function,
        invoke_without_command=has_function,
        **TYPER_ARGUMENTS,
    )
    app.callback()(import_function(group.module, group.function) if has_function else _do_nothing)
    typer_group = typer.main.get_command(app)
    assert isinstance(typer_group, TyperGroup)  # noqa: S101 (typer builds a group if the app has a callback)
    typer_group.commands = {
        command.name: _make_lazy_command(command) for command in COMMANDS if command.group == group.name
    }
    return typer_group


def _do_nothing() -> None:
    """Serve as the callback of a group without a function, because typer requires a callback for every group."""
    pass


def _load_entry_point_command(name: str) -> Any:
    """Return the command of the installed entry point with this name, or None if there is no such entry point."""
    # The module executor.cli.entry_points is not imported at the top, because it imports importlib.metadata. That
    # import would take an eighth of the time of `smith --help`.
    function_or_group = import_function("entry_points", "import_entry_point_command")(name)
    if isinstance(function_or_group, typer.Typer):
        return typer.main.get_command(function_or_group)
    return None if function_or_group is None else _build_command(name, function_or_group)


def _load_extension(extension: Extension) -> Any:
    """Return the command of the extension. Raises DistributionNotInstalled if its distribution is not installed."""
    command = _load_entry_point_command(extension.name)
    if command is None:
        raise DistributionNotInstalled(
            f"`smith {extension.name}` is not installed: pip install {extension.distribution}"
        )
    return command
