"""Decides before each claim whether this machine has the memory and CPU for one more run.

A run needs memory until it ends. It needs CPU mostly at its start; afterwards it waits for Proxmox. So admission
depends on free memory and on the number of runnable processes. A "warm" run is forked by a server process that has
already imported Ansible. So a warm run needs less memory than a "cold" run, which is a new ansible-playbook process.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

from executor.agent.machine import RUN_MEMORY_MIB, available_memory_mib, runnable_process_count, usable_cores
from executor.log import get_logger

log = get_logger(__name__)

#: The free memory is checked only when this agent has at least this many runs per core. Each running job counts
#: as one run.
MIN_RUNS_PER_CORE_FOR_MEMORY_CHECK = 1.0
#: The number of runnable processes is checked only when this agent has at least this many runs per core.
MIN_RUNS_PER_CORE_FOR_LOAD_CHECK = 4.0
#: If the machine has more runnable processes per core than this, no further run is admitted, because it would slow down
#: all runs. The processes of a run that waits for Proxmox are not runnable.
MAX_RUNNABLE_PROCESSES_PER_CORE = 3.0
#: A warning is logged when no run was admitted for this time.
WARNING_DELAY_S = 10.0


@dataclass(kw_only=True)
class Admission:
    """Decides whether one more run may start. Admission is closed when the last decision was against a run."""

    uses_warm_runs: bool  #: the agent uses warm runs
    _closed_at: float | None = None  #: monotonic time at which admission closed; None while it is open
    _is_warning_logged: bool = False  #: a warning was logged since admission closed
    _usable_cores: float = field(default_factory=usable_cores)  #: the cores that this process may use

    @property
    def is_closed(self) -> bool:
        """True when the last call of `may_start_run` returned False."""
        return self._closed_at is not None

    def may_start_run(self, running_job_count: int) -> bool:
        """Decide whether one more run may start. Log when admission stays closed, and when it opens again."""
        reason = self._reason_against_run(running_job_count / self._usable_cores)
        if not reason:
            if self._is_warning_logged:
                log.info("admission_resumed", running_job_count=running_job_count)
            self._closed_at, self._is_warning_logged = None, False
            return True
        self._closed_at = self._closed_at or time.monotonic()
        if not self._is_warning_logged and time.monotonic() - self._closed_at >= WARNING_DELAY_S:
            self._is_warning_logged = True
            log.warning("admission_closed", reason=reason, running_job_count=running_job_count)
        return False

    def _reason_against_run(self, runs_per_core: float) -> str:
        """Return the reason why no further run may start, or '' when a further run may start."""
        if runs_per_core >= MIN_RUNS_PER_CORE_FOR_MEMORY_CHECK:
            # RUN_MEMORY_MIB has the keys True (a warm run) and False (a cold run).
            free_mib, required_mib = available_memory_mib(), RUN_MEMORY_MIB[self.uses_warm_runs]
            if free_mib < required_mib:
                return f"{free_mib:.0f} MiB of memory are free, but a run needs {required_mib} MiB"
        if runs_per_core >= MIN_RUNS_PER_CORE_FOR_LOAD_CHECK:
            # All runnable processes of the machine are counted. So their maximum number depends on all cores of the
            # machine, not on `_usable_cores`.
            machine_cores = os.cpu_count() or 1
            process_count = runnable_process_count()
            if process_count > MAX_RUNNABLE_PROCESSES_PER_CORE * machine_cores:
                return f"{process_count} processes are runnable on {machine_cores} cores"
        return ""
