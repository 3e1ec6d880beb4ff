"""Results of `smith doctor`, for its tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from executor.doctor.checks import CheckResult, Status, exit_code


@dataclass
class Results:
    """The checks of one `smith doctor`."""

    checks: list[CheckResult]

    @property
    def code(self) -> int:
        """Return the exit code of the command."""
        return exit_code(self.checks)

    def named(self, name: str, *statuses: Status) -> list[CheckResult]:
        """Return the checks with this name and, if statuses are given, with one of them."""
        return [check for check in self.checks if check.name == name and (not statuses or check.status in statuses)]

    def only(self, name: str) -> CheckResult:
        """Return the one check with this name."""
        (check,) = self.named(name)
        return check

    @property
    def failed(self) -> set[tuple[str, str]]:
        """Return the area and the name of each failed check."""
        return {(check.area.value, check.name) for check in self.checks if check.status is Status.FAILED}


Doctor = Callable[..., Results]
