"""Decides before each claim whether one more run may start on this machine now.

A run needs CPU when it starts and memory as long as it lives; while Proxmox works, it only waits. So admission depends
on free memory and on the number of runnable processes.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

from executor.agent.machine import SLOT_MIB, available_mib, cores, runnable
from executor.log import get_logger

log = get_logger(__name__)

#: Runnable processes per core above which one more run would only slow the others down. Runs that wait for Proxmox
#: are not runnable.
MAX_RUNNABLE_PER_CORE = 2.0
#: Runs per core that are always admitted, however busy the machine is.
ALWAYS_PER_CORE = 4.0
#: How long admission is closed before that is logged.
LOG_AFTER_S = 10.0


@dataclass(kw_only=True)
class Admission:
    """Answers whether one more run may start. A wait longer than LOG_AFTER_S is logged once."""

    is_warm: bool
    _held_at: float | None = None  #: monotonic; when it was closed
    _is_logged: bool = False
    _cores: float = field(default_factory=cores)

    @property
    def is_closed(self) -> bool:
        """True since the last answer was no."""
        return self._held_at is not None

    def is_open(self, running: int) -> bool:
        """True while one more run would not slow down those that run."""
        reason = self._reason(running / self._cores)
        if not reason:
            if self._is_logged:
                log.info("admission_resumed", running=running)
            self._held_at, self._is_logged = None, False
            return True
        self._held_at = self._held_at or time.monotonic()
        if not self._is_logged and time.monotonic() - self._held_at >= LOG_AFTER_S:
            self._is_logged = True
            log.warning("admission_held", reason=reason, running=running)
        return False

    def _reason(self, running_per_core: float) -> str:
        """Return why no run may start, '' when one may."""
        if running_per_core >= 1 and (left := available_mib()) < SLOT_MIB[self.is_warm]:
            return f"{left:.0f} MiB of memory are left, a run takes {SLOT_MIB[self.is_warm]}"
        machine = os.cpu_count() or 1  # `runnable` counts the whole machine's processes, so all its cores count
        if running_per_core >= ALWAYS_PER_CORE and (waiting := runnable()) > MAX_RUNNABLE_PER_CORE * machine:
            return f"{waiting} processes are runnable on {machine} cores"
        return ""
