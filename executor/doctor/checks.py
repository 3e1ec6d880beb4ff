"""The result of a preflight check, and the exit code that follows from the results."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from executor.errors import EXIT_DATABASE, EXIT_FAILURE, EXIT_FULCRUM, EXIT_OK, EXIT_PROXMOX, EXIT_SETTINGS


class Area(StrEnum):
    """The part of the system that a check is about. The order decides the exit code."""

    SETTINGS = "settings"
    FULCRUM = "fulcrum"
    PROXMOX = "proxmox"
    DATABASE = "database"
    MACHINE = "machine"


EXIT_CODES = {
    Area.SETTINGS: EXIT_SETTINGS,
    Area.FULCRUM: EXIT_FULCRUM,
    Area.PROXMOX: EXIT_PROXMOX,
    Area.DATABASE: EXIT_DATABASE,
    Area.MACHINE: EXIT_FAILURE,
}


class Status(StrEnum):
    """The result of a check."""

    OK = "ok"
    WARNING = "warning"  #: jobs work, but the operator should know
    FAILED = "failed"  #: jobs will fail
    SKIPPED = "skipped"  #: not run, because a check before it failed


@dataclass(frozen=True, kw_only=True)
class Check:
    """One preflight check with its result."""

    area: Area
    name: str
    status: Status
    text: str = ""
    hints: tuple[str, ...] = ()  #: commands or settings for the operator to copy


@dataclass(frozen=True)
class CheckFactory:
    """Creates the checks of one area."""

    area: Area

    def ok(self, name: str, text: str = "") -> Check:
        return Check(area=self.area, name=name, status=Status.OK, text=text)

    def warn(self, name: str, text: str, *hints: str) -> Check:
        return Check(area=self.area, name=name, status=Status.WARNING, text=text, hints=hints)

    def fail(self, name: str, text: str, *hints: str) -> Check:
        return Check(area=self.area, name=name, status=Status.FAILED, text=text, hints=hints)

    def skip(self, name: str, text: str) -> Check:
        return Check(area=self.area, name=name, status=Status.SKIPPED, text=text)


def exit_code(checks: Iterable[Check]) -> int:
    """Return the exit code of the first area with a failed check."""
    failed = {check.area for check in checks if check.status is Status.FAILED}
    return next((EXIT_CODES[area] for area in Area if area in failed), EXIT_OK)
