"""One thing that was looked at, and the area by which the exit code is chosen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from executor.errors import EXIT_DATABASE, EXIT_FAILURE, EXIT_FULCRUM, EXIT_OK, EXIT_PROXMOX, EXIT_SETTINGS


class Area(StrEnum):
    """Who has to act."""

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
    """How it is."""

    OK = "ok"
    WARNING = "warning"  #: works, but somebody should know
    FAILED = "failed"  #: jobs will fail
    SKIPPED = "skipped"  #: cannot be known, because of something that failed before


@dataclass(frozen=True, kw_only=True)
class Check:
    """One look. `hints` are commands or settings, to be copied."""

    area: Area
    name: str
    status: Status
    text: str = ""
    hints: tuple[str, ...] = ()


@dataclass(frozen=True)
class Maker:
    """Makes the checks of one area."""

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
    """Return the code of the first area, in their order, in which something failed."""
    failed = {check.area for check in checks if check.status is Status.FAILED}
    return next((EXIT_CODES[area] for area in Area if area in failed), EXIT_OK)
