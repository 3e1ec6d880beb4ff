"""Defines the result of a preflight check of `smith doctor`, and the exit code that results from all checks.

A remedy tells an operator how to solve a problem: a command, a setting or a short instruction. The remedies of a result
are in its attribute `hints`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from executor.errors import EXIT_DATABASE, EXIT_FAILURE, EXIT_FULCRUM, EXIT_OK, EXIT_PROXMOX, EXIT_SETTINGS

#: A part of a remedy that an operator replaces, such as `<vmid>`.
_PLACEHOLDER = re.compile(r"<[a-z ]+>")


class Area(StrEnum):
    """The part of the system that a check is about.

    If checks of several areas fail, the exit code is that of the first of these areas in the order of this enum.
    """

    SETTINGS = "settings"
    FULCRUM = "fulcrum"
    PROXMOX = "proxmox"
    DATABASE = "database"
    MACHINE = "machine"


#: The exit code for a failed check of each area.
EXIT_CODES = {
    Area.SETTINGS: EXIT_SETTINGS,
    Area.FULCRUM: EXIT_FULCRUM,
    Area.PROXMOX: EXIT_PROXMOX,
    Area.DATABASE: EXIT_DATABASE,
    Area.MACHINE: EXIT_FAILURE,
}
#: The remedy if the clock of this machine or of a server is wrong.
CLOCK_REMEDY = "on the machine whose clock is wrong: timedatectl set-ntp true"


class Status(StrEnum):
    """The status of a check's result."""

    OK = "ok"
    WARNING = "warning"  #: jobs can succeed, but the operator should act
    FAILED = "failed"  #: jobs will fail
    SKIPPED = "skipped"  #: the result is unknown, because something that the check needs is missing


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """The result of one preflight check."""

    area: Area
    name: str
    status: Status
    text: str = ""
    hints: tuple[str, ...] = ()  #: the remedies; most of them are commands or settings that the operator can copy


@dataclass(frozen=True)
class ResultFactory:
    """Creates the results of the checks of one area. It has one method for each status."""

    area: Area

    def ok(self, name: str, text: str = "") -> CheckResult:
        return CheckResult(area=self.area, name=name, status=Status.OK, text=text)

    def warn(self, name: str, text: str, *remedies: str) -> CheckResult:
        return CheckResult(area=self.area, name=name, status=Status.WARNING, text=text, hints=remedies)

    def fail(self, name: str, text: str, *remedies: str) -> CheckResult:
        return CheckResult(area=self.area, name=name, status=Status.FAILED, text=text, hints=remedies)

    def skip(self, name: str, text: str, *remedies: str) -> CheckResult:
        return CheckResult(area=self.area, name=name, status=Status.SKIPPED, text=text, hints=remedies)


def command_line(*words: object) -> str:
    """Return the command line of a remedy. Each word is quoted for a shell if necessary."""
    return " ".join(_quote_for_shell(str(word)) for word in words)


def quoted_setting_line(name: str, value: object) -> str:
    """Return the line `NAME=value` of a remedy. The operator can use it in a shell and in a settings file."""
    text = str(value)
    return f"{name}={_quote_for_shell(text) if text else ''}"


def _quote_for_shell(text: str) -> str:
    """Return the text as one word of a shell.

    A placeholder such as `<vmid>` needs no quotes, because an operator replaces it.
    """
    text_without_placeholders = _PLACEHOLDER.sub("", text)
    if text and (not text_without_placeholders or shlex.quote(text_without_placeholders) == text_without_placeholders):
        return text
    return shlex.quote(text) if text.isprintable() else f"$'{''.join(map(_escape_for_shell, text))}'"


def _escape_for_shell(char: str) -> str:
    """Return the character in the form for `$'…'` of a shell. A line break becomes a backslash and an `n`."""
    if char in "\\'":
        return f"\\{char}"
    if char == "\n":
        return "\\n"
    return char if char.isprintable() else f"\\U{ord(char):08x}"


def exit_code(results: Iterable[CheckResult]) -> int:
    """Return the exit code of the first area (in the order of `Area`) with a failed check; EXIT_OK if none failed."""
    failed_areas = {result.area for result in results if result.status is Status.FAILED}
    for area in Area:
        if area in failed_areas:
            return EXIT_CODES[area]
    return EXIT_OK
