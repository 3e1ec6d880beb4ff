"""Decides before each claim whether this machine has the memory and CPU for one more run.

A run needs memory until it ends, but CPU mostly at its start: while Proxmox works, the run only waits. So admission
depends on free memory and on the number of runnable processes.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

from executor.agent.machine import SLOT_MIB, available_mib, cores, runnable
from executor.log import get_logger

log = get_logger(__name__)

#: With more runnable processes per core than this, no run is admitted: it would slow down the others. Runs that wait
#: for Proxmox are not runnable.
MAX_RUNNABLE_PER_CORE = 2.0
#: This many runs per core are admitted even when the machine is busy.
ALWAYS_PER_CORE = 4.0
#: Closed admission is logged after this time.
LOG_AFTER_S = 10.0


@dataclass(kw_only=True)
class Admission:
    """Decides whether one more run may start. Logs once when the answer has been no for LOG_AFTER_S."""

    is_warm: bool  #: runs are warm, so each needs less memory
    _closed_at: float | None = None  #: monotonic; of the first no since the last yes
    _is_logged: bool = False
    _cores: float = field(default_factory=cores)

    @property
    def is_closed(self) -> bool:
        """True when the last answer was no."""
        return self._closed_at is not None

    def is_open(self, running: int) -> bool:
        """True when one more run may start beside `running` others."""
        reason = self._reason(running / self._cores)
        if not reason:
            if self._is_logged:
                log.info("admission_resumed", running=running)
            self._closed_at, self._is_logged = None, False
            return True
        self._closed_at = self._closed_at or time.monotonic()
        if not self._is_logged and time.monotonic() - self._closed_at >= LOG_AFTER_S:
            self._is_logged = True
            log.warning("admission_held", reason=reason, running=running)
        return False

    def _reason(self, running_per_core: float) -> str:
        """Return why no run may start, '' when one may."""
        if running_per_core >= 1 and (free_mib := available_mib()) < SLOT_MIB[self.is_warm]:
            return f"{free_mib:.0f} MiB of memory are free, a run needs {SLOT_MIB[self.is_warm]}"
        # All cores of the machine, because `runnable` counts the processes of the whole machine.
        machine_cores = os.cpu_count() or 1
        if running_per_core >= ALWAYS_PER_CORE and (count := runnable()) > MAX_RUNNABLE_PER_CORE * machine_cores:
            return f"{count} processes are runnable on {machine_cores} cores"
        return ""
