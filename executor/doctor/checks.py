"""Defines the result of a preflight check of `smith doctor`, and the exit code that results from all checks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from executor.errors import EXIT_DATABASE, EXIT_FAILURE, EXIT_FULCRUM, EXIT_OK, EXIT_PROXMOX, EXIT_SETTINGS


class Area(StrEnum):
    """The part of the system that a check is about.

    If checks of several areas fail, the area that this class lists first decides the exit code.
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
#: What to do if the clock of this machine or of a server is wrong.
CLOCK_HINT = "on the machine whose clock is wrong: timedatectl set-ntp true"


class Status(StrEnum):
    """Whether a check succeeded."""

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
    hints: tuple[str, ...] = ()  #: commands or settings that the operator can copy


@dataclass(frozen=True)
class ResultFactory:
    """Creates the results of the checks of one area. It has one method for each status."""

    area: Area

    def ok(self, name: str, text: str = "") -> CheckResult:
        return CheckResult(area=self.area, name=name, status=Status.OK, text=text)

    def warn(self, name: str, text: str, *hints: str) -> CheckResult:
        return CheckResult(area=self.area, name=name, status=Status.WARNING, text=text, hints=hints)

    def fail(self, name: str, text: str, *hints: str) -> CheckResult:
        return CheckResult(area=self.area, name=name, status=Status.FAILED, text=text, hints=hints)

    def skip(self, name: str, text: str, *hints: str) -> CheckResult:
        return CheckResult(area=self.area, name=name, status=Status.SKIPPED, text=text, hints=hints)


def exit_code(results: Iterable[CheckResult]) -> int:
    """Return the exit code of the first area with a failed check, or EXIT_OK when no check failed."""
    failed_areas = {result.area for result in results if result.status is Status.FAILED}
    for area in Area:
        if area in failed_areas:
            return EXIT_CODES[area]
    return EXIT_OK
