"""Builds typer's commands from the table of commands. A command's module is imported when the command is called."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import typer
import typer.main
from typer.core import TyperCommand, TyperGroup

from executor.cli.commands import COMMANDS, EXTENSIONS, GROUPS, Command, Extension, Group
from executor.cli.help_text import examples_of
from executor.errors import SmithError

#: The arguments of every typer.Typer. They disable rich, because importing rich takes longer than importing everything
#: else that the help needs.
STYLE: dict[str, Any] = {"rich_markup_mode": None, "add_completion": False, "pretty_exceptions_enable": False}


class NotInstalled(SmithError):
    """The command belongs to a distribution that is not installed."""


class LazyCommand(TyperCommand):
    """A placeholder for a command or group, with the name and the help line from the table of commands.

    When the command is called, or its own `--help` is shown, the placeholder imports and builds the real command.
    """

    def __init__(self, name: str, help_line: str, load: Callable[[], Any], *, hidden: bool = False) -> None:
        """Store `load`, which imports, builds and returns the real command."""
        super().__init__(name, help=help_line, hidden=hidden, rich_markup_mode=None)
        self.load = load

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Return the context of the real command, so that typer continues with the real command."""
        return self.load().make_context(info_name, args, parent, **extra)


class CommandLine(TyperGroup):
    """The top level of `smith`: the commands of the table, and the commands that other Python distributions add."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command with this name, or None when neither the table nor an entry point has the name."""
        return super().get_command(ctx, cmd_name) or _from_entry_point(cmd_name)


def top_level_commands() -> dict[str, LazyCommand]:
    """Return the commands and groups of the top level, in the order of the help, without importing their modules."""
    found = {command.name: _lazy_command(command) for command in COMMANDS if not command.group}
    for extension in EXTENSIONS:
        found[extension.name] = LazyCommand(extension.name, extension.help, partial(_load_extension, extension))
    for group in GROUPS:
        found[group.name] = LazyCommand(group.name, group.help, partial(_load_group, group))
    return found


def function_at(module: str, function: str) -> Callable[..., Any]:
    """Import the module of executor.cli with this name, and return its function with this name."""
    found: Callable[..., Any] = getattr(importlib.import_module(f"executor.cli.{module}"), function)
    return found


def _lazy_command(row: Command) -> LazyCommand:
    return LazyCommand(row.name, row.help, partial(_load_command, row), hidden=row.is_hidden)


def _load_command(row: Command) -> Any:
    return _build_command(row.name, function_at(row.module, row.function))


def _build_command(name: str, function: Callable[..., Any]) -> Any:
    """Return typer's command that calls the function. Its options and help come from the function's signature."""
    app = typer.Typer(**STYLE)
    app.command(name, epilog=examples_of(function))(function)
    return typer.main.get_command(app)


def _load_group(row: Group) -> TyperGroup:
    """Return the group with its commands, without importing the modules of the commands."""
    has_function = bool(row.function)
    app = typer.Typer(
        name=row.name,
        help=row.help,
        epilog=row.examples,
        no_args_is_help=not has_function,
        invoke_without_command=has_function,
        **STYLE,
    )
    app.callback()(function_at(row.module, row.function) if has_function else _do_nothing)
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)  # noqa: S101 (an app with a callback is a group)
    group.commands = {command.name: _lazy_command(command) for command in COMMANDS if command.group == row.name}
    return group


def _do_nothing() -> None:
    """Run before the commands of a group without a function of its own, because typer requires a callback."""
    pass


def _from_entry_point(name: str) -> Any:
    """Return the command that an installed distribution adds under this name, or None if there is no such command."""
    # entry_points is not imported at the top, because it imports importlib.metadata. This import would take an eighth
    # of the time of `smith --help`.
    function = function_at("entry_points", "find_function")(name)
    return None if function is None else _build_command(name, function)


def _load_extension(row: Extension) -> Any:
    """Return the command of the extension. Raises NotInstalled."""
    if (command := _from_entry_point(row.name)) is None:
        raise NotInstalled(f"`smith {row.name}` is not installed: pip install {row.distribution}")
    return command
