"""Decides before each claim whether this machine has the memory and CPU for one more run.

A run needs memory until it ends, but it needs CPU mostly at its start: later it only waits for Proxmox. So admission
depends on free memory and on the number of runnable processes. "Warm" runs are forked by a server process that has
already imported Ansible, so they need less memory than "cold" runs, which are new ansible-playbook processes.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

from executor.agent.machine import SLOT_MIB, available_mib, cores, runnable
from executor.log import get_logger

log = get_logger(__name__)

#: No run is admitted while the machine has more runnable processes per core than this, because another run would slow
#: down the running ones. The processes of a run that waits for Proxmox are not runnable.
MAX_RUNNABLE_PER_CORE = 2.0
#: Up to this many runs per core, the number of runnable processes is not checked.
ALWAYS_PER_CORE = 4.0
#: A warning is logged when no run was admitted for this time.
LOG_AFTER_S = 10.0


@dataclass(kw_only=True)
class Admission:
    """Decides whether one more run may start. Admission is closed while the last decision was no."""

    is_warm: bool  #: the agent uses warm runs
    _closed_at: float | None = None  #: monotonic time at which admission closed; None while it is open
    _is_logged: bool = False  #: a warning was logged since admission closed
    _cores: float = field(default_factory=cores)

    @property
    def is_closed(self) -> bool:
        """True when the last call of `is_open` returned False."""
        return self._closed_at is not None

    def is_open(self, running: int) -> bool:
        """Decide whether one more run may start; `running` is the number of running jobs."""
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
        """Return the reason why no further run may start, or '' when one may start."""
        if running_per_core >= 1 and (free_mib := available_mib()) < SLOT_MIB[self.is_warm]:
            return f"{free_mib:.0f} MiB of memory are free, a run needs {SLOT_MIB[self.is_warm]}"
        # `runnable` counts the processes of the whole machine, so its limit depends on all cores of the machine. The
        # number of runs depends on `_cores`, the cores that this process may use.
        machine_cores = os.cpu_count() or 1
        if running_per_core >= ALWAYS_PER_CORE and (count := runnable()) > MAX_RUNNABLE_PER_CORE * machine_cores:
            return f"{count} processes are runnable on {machine_cores} cores"
        return ""
