"""Writes the manual page smith(1) from the commands and their help, in the markup that man(7) describes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from executor.cli.app import HELP_EPILOG, build_root_command
from executor.cli.commands import EXTENSIONS

#: The names of the commands that the page omits: other Python distributions provide and document them.
OMITTED_COMMANDS = frozenset(extension.name for extension in EXTENSIONS)
#: If the first line of a paragraph of a help text is only this character, typer keeps the paragraph's line breaks.
KEEP_LINE_BREAKS_MARK = "\b"
HEADER = """\
.\\" Generated from the commands by docs/generate.py. Do not edit.
.TH SMITH 1 "" "Agent Smith" "Agent Smith"
.SH NAME
smith \\- run FulcrumCore's VM jobs as Ansible playbooks at Proxmox VE
.SH SYNOPSIS
.B smith
.I COMMAND
[\\fIOPTIONS\\fR] [\\fIARGUMENTS\\fR]
"""
FOOTER = """\
.SH ENVIRONMENT
Settings are read from environment variables, from files that contain one secret each, and from the file .env of the
working directory.
\\fBsmith config example\\fR prints all settings with their meaning.
\\fBsmith config show\\fR prints their current values.
"""


def man_page() -> str:
    """Return the text of the manual page."""
    root_command: Any = build_root_command()
    context = root_command.make_context("smith", [], resilient_parsing=True)
    lines = [
        ".SH DESCRIPTION",
        *_paragraph_lines(root_command.help or ""),
        ".SH OPTIONS",
        *_option_lines(root_command, context),
    ]
    lines.append(".SH COMMANDS")
    # Each command of the root or of a group is a placeholder. `load_real_command` returns the real command.
    for name, command in root_command.commands.items():
        if name not in OMITTED_COMMANDS and not command.hidden:
            lines += _command_lines(command.load_real_command(), f"smith {name}", context)
    lines += [".SH EXIT STATUS AND EXAMPLES", *_paragraph_lines(HELP_EPILOG)]
    return HEADER + "\n".join(lines) + "\n" + FOOTER


def _command_lines(command: Any, command_path: str, parent: Any) -> Iterator[str]:
    """Yield the lines of one command and, if it is a group, of the group's commands."""
    name = command_path.rpartition(" ")[2]
    context = command.context_class(command, info_name=name, parent=parent, resilient_parsing=True)
    usage = " ".join(command.collect_usage_pieces(context))
    yield f'.SS "{_escaped(f"{command_path} {usage}".strip())}"'
    yield from _paragraph_lines(command.help or "")
    yield from _option_lines(command, context)
    yield from _paragraph_lines(command.epilog or "")
    for child_name, child in getattr(command, "commands", {}).items():
        yield from _command_lines(child.load_real_command(), f"{command_path} {child_name}", context)


def _option_lines(command: Any, context: Any) -> Iterator[str]:
    """Yield the lines of the arguments and options that the help shows."""
    for parameter in command.get_params(context):
        help_record = parameter.get_help_record(context)
        if help_record is None or parameter.name == "help":
            continue
        option_names, help_text = help_record
        yield from (".TP", f".B {_escaped(option_names)}", _escaped(" ".join(help_text.split())))


def _paragraph_lines(text: str) -> Iterator[str]:
    """Yield the lines of a help text. Only a paragraph that begins with KEEP_LINE_BREAKS_MARK keeps its line breaks."""
    for paragraph in text.split("\n\n"):
        lines = paragraph.strip("\n").splitlines()
        if lines and lines[0] == KEEP_LINE_BREAKS_MARK:
            yield from (".PP", ".nf", *(_escaped(line) for line in lines[1:]), ".fi")
        elif lines:
            yield from (".PP", *(_escaped(line.strip()) for line in lines))


def _escaped(text: str) -> str:
    """Escape each character that man(7) would read as markup."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped[:1] in (".", "'") else escaped
