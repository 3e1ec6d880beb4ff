"""Declares the settings for jobs and their playbook runs: how many run at once, and how long they may take."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ValidationInfo, field_validator

from executor.settings.declare import SettingsArea, duration_setting, setting, whole_number_setting
from executor.settings.types import CaseInsensitive

#: The default timeout of a playbook run, as a share of FulcrumCore's job timeout. The claim of the job and the report
#: of its result need the remaining time.
PLAYBOOK_SHARE_OF_JOB_TIMEOUT = 0.8


def _default_playbook_timeout_s(settings: dict[str, Any]) -> float:
    """Return the default of SMITH_PLAYBOOK_TIMEOUT_S."""
    return float(settings["fulcrum_job_timeout_s"] * PLAYBOOK_SHARE_OF_JOB_TIMEOUT)


class RunSettings(SettingsArea):
    """Defines how many jobs run at once, and how long they may take."""

    smith_concurrency: int = whole_number_setting(
        0,
        "maximum number of jobs that run at once; 0: as many as cores and memory allow, at most 32 per core",
        ge=0,
        le=256,
    )
    smith_clones_per_storage: int = whole_number_setting(
        64,
        "maximum number of clone operations at once per storage (per node for a local storage); after a lock timeout "
        "of the storage, the agent temporarily allows fewer",
        ge=1,
        le=256,
    )
    smith_warm: Annotated[Literal["auto", "on", "off"], CaseInsensitive] = setting(
        "auto",
        "whether playbook runs are forked from processes that have already loaded Ansible; auto: only if the installed "
        "Ansible versions were tested with this; on: always, and the agent does not start with untested versions; off: "
        "never",
        example="auto",
    )
    smith_fence: Annotated[Literal["auto", "always", "never"], CaseInsensitive] = setting(
        "auto",
        "whether an agent ends its own runs when it has not renewed its leases for two thirds of SMITH_LEASE_S; auto: "
        "only if another agent uses the database; always: even if no other agent uses the database; never: no run is "
        "ended, and a job whose run has started is not taken by other agents before FULCRUM_JOB_TIMEOUT_S has passed "
        "since the job's creation. If the agent should end its runs but is suspended or blocked, the parent process of "
        "each run ends the run after three quarters of SMITH_LEASE_S",
        example="auto",
    )
    smith_lease_s: float = duration_setting(
        30,
        "duration of a lease: other agents may take the jobs of an agent that has not renewed its leases for this time",
        ge=1,
        le=3600,
    )
    smith_playbook_timeout_s: float = duration_setting(
        _default_playbook_timeout_s,
        "timeout of one playbook run; it must be less than FULCRUM_JOB_TIMEOUT_S",
        ge=1,
        example="240",
        default_text="80 % of FULCRUM_JOB_TIMEOUT_S",
    )
    smith_shutdown_timeout_s: float = duration_setting(
        60,
        "time for which a guest may shut down; a guest that is still running after this time is powered off",
        ge=1,
        le=3600,
    )
    smith_address_timeout_s: float = duration_setting(
        10,
        "time for which the start of a VM waits until the guest agent reports an IP address; after this time, the "
        "start succeeds without an address. 0: the guest agent is asked once",
        ge=0,
        le=600,
    )

    @field_validator("smith_playbook_timeout_s")
    @classmethod
    def _require_less_than_job_timeout(cls, value: float, info: ValidationInfo) -> float:
        job_timeout_s = info.data.get("fulcrum_job_timeout_s")  # absent if pydantic has rejected its value
        if job_timeout_s is not None and value >= job_timeout_s:
            raise ValueError(
                f"is wrong, it must be less than FULCRUM_JOB_TIMEOUT_S ({job_timeout_s:g}), "
                "or FulcrumCore fails the job while the playbook still runs"
            )
        return value
