"""The table of commands agrees with the docstrings and parameters of the modules that implement the commands."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from importlib.metadata import entry_points

import pytest
import typer
import typer.main

from executor import cli
from executor.cli.commands import COMMANDS, EXTENSIONS, GROUPS, Command, Extension, Group
from executor.cli.entry_points import ENTRY_POINT_GROUP
from executor.cli.help_text import examples_section_of
from executor.cli.lazy import import_function, top_level_commands


@pytest.mark.parametrize("row", COMMANDS, ids=lambda row: f"{row.group} {row.name}".strip())
def test_the_help_of_a_row_is_the_first_line_of_its_functions_docstring(row: Command) -> None:
    assert row.help == _first_line(import_function(row.module, row.function))


@pytest.mark.parametrize("row", COMMANDS, ids=lambda row: f"{row.group} {row.name}".strip())
def test_a_command_that_is_shown_in_the_help_has_examples_that_use_it(row: Command) -> None:
    section = examples_section_of(import_function(row.module, row.function))
    assert row.is_hidden or (section and f"smith {row.group} {row.name}".replace("  ", " ") in section)


@pytest.mark.parametrize("row", COMMANDS, ids=lambda row: f"{row.group} {row.name}".strip())
def test_no_argument_has_brackets_or_dots_twice(row: Command) -> None:
    app = typer.Typer()
    app.command(row.name)(import_function(row.module, row.function))
    command = typer.main.get_command(app)
    pieces = command.collect_usage_pieces(typer.Context(command))
    assert [piece for piece in pieces if "[[" in piece or "]]" in piece or piece.count("...") > 1] == []


def test_every_function_with_examples_is_a_command() -> None:
    found = set()
    for module in pkgutil.iter_modules(cli.__path__):
        members = inspect.getmembers(importlib.import_module(f"executor.cli.{module.name}"), inspect.isfunction)
        found |= {(member.__module__, name) for name, member in members if examples_section_of(member)}
    assert found <= {(f"executor.cli.{row.module}", row.function) for row in COMMANDS}


def test_the_names_of_commands_are_unique_and_every_group_is_in_the_table() -> None:
    names = [(row.group, row.name) for row in COMMANDS]
    assert len(set(names)) == len(names)
    assert {row.group for row in COMMANDS} == {"", *(group.name for group in GROUPS)}
    top = [row.name for row in (*COMMANDS, *EXTENSIONS, *GROUPS) if not (isinstance(row, Command) and row.group)]
    assert list(top_level_commands()) == top
    assert len(set(top)) == len(top)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_a_group_lists_the_commands_of_its_rows(group: Group) -> None:
    loaded = top_level_commands()[group.name].load_real_command()
    assert list(loaded.commands) == [row.name for row in COMMANDS if row.group == group.name]
    assert loaded.help == group.help


@pytest.mark.parametrize("row", EXTENSIONS, ids=lambda row: row.name)
def test_an_extension_is_an_entry_point_of_the_distribution_that_the_table_names(row: Extension) -> None:
    found = entry_points(group=ENTRY_POINT_GROUP, name=row.name)
    assert [entry_point.dist.name for entry_point in found if entry_point.dist] == [row.distribution]
    assert [_first_line(_function(entry_point.load())) for entry_point in found] == [row.help]


def _function(command_or_group: object) -> object:
    """Return the function of an entry point. For a group of commands, it is the function of the group itself."""
    callback = command_or_group.registered_callback if isinstance(command_or_group, typer.Typer) else None
    return command_or_group if callback is None else callback.callback


def _first_line(function: object) -> str:
    return (inspect.getdoc(function) or "").split("\n")[0]
