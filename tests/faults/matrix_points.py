"""The points of a job at which the kill matrix kills a process. A job without faults shows which requests it sends.

A point is a durable step of the agent (`crash_points`), which a crash does not undo, or a kind of request to Proxmox.
At each point the job is held: the agent's thread waits, or Proxmox has processed the request and does not answer yet.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from faults.system import SystemUnderTest

from executor.agent import crash_points

#: What differs between two requests of the same kind: the node, the VMID and the id of a Proxmox task.
VARIABLE_PARTS = ((r"/nodes/[^/]+", "/nodes/*"), (r"/(\d{3,})(?=/|$)", "/*"), (r"UPID:[^/]+", "*"))


@dataclass(frozen=True)
class Step:
    """A durable step of the agent, by the name in `crash_points.POINTS`."""

    name: str

    def __str__(self) -> str:
        return self.name

    def arm(self, system: SystemUnderTest) -> None:
        """Hold the next job that reaches the point."""
        _hold_file(system).unlink(missing_ok=True)
        system.set_crashes({"point": self.name, "times": 1, "hold": str(_hold_file(system))})

    def is_holding(self, system: SystemUnderTest) -> bool:
        return _hold_file(system).exists()

    def release(self, system: SystemUnderTest) -> None:
        system.set_crashes()
        _hold_file(system).unlink(missing_ok=True)


@dataclass(frozen=True)
class Request:
    """A kind of request to Proxmox: the method, and the path with stars for its variable parts."""

    method: str
    path: str

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    def arm(self, system: SystemUnderTest) -> None:
        """Hold the next request of this kind after Proxmox has processed it."""
        pattern = re.escape(self.path).replace(r"\*", "[^/]+")
        system.lab.proxmox.control("hold", method=self.method, path=pattern)

    def is_holding(self, system: SystemUnderTest) -> bool:
        return system.lab.proxmox.is_holding()

    def release(self, system: SystemUnderTest) -> None:
        system.lab.proxmox.control("clear_faults")


Point = Step | Request


def _hold_file(system: SystemUnderTest) -> Path:
    return system.lab.folder / "held"


def steps() -> list[Point]:
    """Return the agent's steps. A job does not reach the steps that its action does not have."""
    return [Step(name) for name in crash_points.POINTS]


def requests_seen(system: SystemUnderTest) -> list[Point]:
    """Return the kinds of requests that Proxmox has received since its log was emptied, in their order."""
    return list(dict.fromkeys(_kind_of(request) for request in system.lab.proxmox.request_log()))


def _kind_of(request: dict[str, str]) -> Point:
    path = request["path"]
    for pattern, replacement in VARIABLE_PARTS:
        path = re.sub(pattern, replacement, path)
    return Request(request["method"], path)
