"""Declares the settings of the agent process: when it restarts, what it keeps, and how often its critical jobs run."""

from __future__ import annotations

from pydantic import field_validator

from executor.settings.declare import DAY_S, YEAR_S, SettingsArea, duration_setting, setting, whole_number_setting


class AgentSettings(SettingsArea):
    """Defines when the agent restarts, how long it keeps finished jobs, and how often its critical jobs run.

    Critical jobs are the periodic tasks of the agent.
    """

    smith_max_jobs: int = whole_number_setting(
        0, "number of jobs that the agent claims before it restarts; 0: no limit", ge=0, example="1000"
    )
    smith_max_memory_mib: int = whole_number_setting(
        0,
        "total memory of the agent and all its child processes at which the agent restarts; 0: no limit",
        ge=0,
        unit="MiB",
        example="2048",
    )
    smith_max_runtime_s: float = duration_setting(
        0, "time for which the agent runs before it restarts; 0: no limit", ge=0, example="86400"
    )
    smith_drain_timeout_s: float = duration_setting(
        300, "maximum time for which the agent waits for running jobs when it stops or restarts", ge=0, le=DAY_S
    )
    smith_job_retention_s: float = duration_setting(
        7 * DAY_S,
        "time for which finished jobs, their artifacts and the mappings of deleted VMs are kept",
        ge=60,
        le=10 * YEAR_S,
        example="604800",
    )
    smith_artifacts_max_mib: int = whole_number_setting(
        1024,
        "disk space for the artifacts of finished runs; the oldest are deleted first. 0: no limit",
        ge=0,
        unit="MiB",
    )
    smith_metrics_interval_s: float = duration_setting(
        60, "interval between two reports of VM metrics to FulcrumCore; 0: never", ge=0
    )
    smith_reconcile_interval_s: float = duration_setting(
        900,
        "interval between two comparisons of the mappings (service to VMID) with Proxmox and FulcrumCore; 0: never",
        ge=0,
    )
    smith_prune_interval_s: float = duration_setting(
        3600,
        "interval at which the agent deletes old jobs and artifacts, and destroys the VMs of deleted services after "
        "SMITH_DELETE_GRACE_S",
        ge=1,
    )
    smith_remote_config: bool = setting(
        False,
        "let the agent's configuration in FulcrumCore override the settings of this machine",
        example="false",
    )

    @field_validator("smith_metrics_interval_s", "smith_reconcile_interval_s")
    @classmethod
    def _require_zero_or_at_least_one(cls, value: float) -> float:
        if 0 < value < 1:
            raise ValueError(f"must be 0 or at least 1, not {value:g}")
        return value
