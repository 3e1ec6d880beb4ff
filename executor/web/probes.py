"""Asks what must not be asked while a page waits: does Proxmox answer, can the database be written, is there space.

One thread, one round every half minute; pages show what the last round found.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from executor.agent import disk_space as space
from executor.agent.state import AgentState, Link
from executor.database import nodes
from executor.database.engine import transaction
from executor.errors import DatabaseError, JobError
from executor.log import get_logger
from executor.proxmox.client import ProxmoxReader
from executor.redaction import redactor

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = get_logger(__name__)

INTERVAL_S = 30.0
#: A finding older than this many intervals says nothing any more.
FRESH_INTERVALS = 4
#: How long the loops may take to begin before anything is asked: the database may be migrated before that.
START_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one look found. `reason` is one of our own sentences, `detail` may quote somebody else."""

    ok: bool
    reason: str = ""
    detail: str = ""
    at: float = field(default_factory=time.monotonic)


class _Bad(Exception):
    """A look found trouble."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


@dataclass(kw_only=True)
class Prober:
    """Looks, and remembers what it saw."""

    state: AgentState
    engine: Engine
    proxmox: ProxmoxReader
    boot_id: str
    folders: Mapping[str, Path]
    interval_s: float = INTERVAL_S
    _findings: dict[str, Finding] = field(default_factory=dict)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _proxmox_link: Link = field(default_factory=lambda: Link("proxmox"))

    @property
    def looks(self) -> dict[str, Callable[[], None]]:
        """What is looked at, by name."""
        return {"proxmox": self._look_at_proxmox, "database": self._look_at_database, "disk": self._look_at_disk}

    def finding(self, name: str) -> Finding:
        """Return what the last round found; one that is too old, or none yet, is no good news."""
        found = self._findings.get(name)
        if found is None:
            return Finding(ok=False, reason="not looked at yet")
        age_s = time.monotonic() - found.at
        if age_s > self.interval_s * FRESH_INTERVALS + 60:
            return Finding(ok=False, reason="not looked at lately", detail=f"for {age_s:.0f} s")
        return found

    def start(self) -> None:
        """Look in a thread of its own, first as soon as the agent's loops turn."""
        self._thread = threading.Thread(target=self._run, name="probes", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a look under way is not waited for."""
        self._stopping.set()

    def free_bytes(self, name: str) -> int:
        """Return how much space a folder has left for us. Raises OSError."""
        return space.free_bytes(self.folders[name])

    def _run(self) -> None:
        while not self.state.turns and not self._stopping.wait(START_POLL_S):
            pass
        while not self._stopping.is_set():
            for name, look in self.looks.items():
                self._findings[name] = _found_by(look)
            self._stopping.wait(self.interval_s)

    def _look_at_proxmox(self) -> None:
        try:
            self.proxmox.version()
        except JobError as error:
            self._proxmox_link.note_down(str(error))
            raise _Bad("Proxmox does not answer as it should", str(error)) from error
        self._proxmox_link.note_up()

    def _look_at_database(self) -> None:
        """Write, because a full disk or a standby can still be read."""
        try:
            with transaction(self.engine) as session:
                nodes.note_seen(session, self.boot_id)
        except DatabaseError as error:
            raise _Bad("the database cannot be written", str(error).splitlines()[0]) from error

    def _look_at_disk(self) -> None:
        low = space.shortages(self.folders)
        if low:
            raise _Bad(f"too little space in the folder for {' and '.join(low)}", "; ".join(low.values()))


def _found_by(look: Callable[[], None]) -> Finding:
    try:
        look()
    except _Bad as bad:
        return Finding(ok=False, reason=bad.reason, detail=redactor.redact(bad.detail))
    except Exception as defect:
        # A defect in a look must not end the looking: said with its traceback, and shown as not good.
        log.exception("probe_crashed")
        return Finding(ok=False, reason="could not be looked at", detail=type(defect).__name__)
    return Finding(ok=True)
