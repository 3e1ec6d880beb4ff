"""Declares the settings for jobs and their playbook runs: how many run at once, and how long each step may take."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ValidationInfo, field_validator

from executor.settings.declare import Area, seconds, setting, whole_number
from executor.settings.types import AnyCase

#: The default timeout of a playbook run, as a share of FulcrumCore's job timeout. The claim of the job and the report
#: of its result need the remaining time.
PLAYBOOK_SHARE = 0.8


def _playbook_timeout_s(settings: dict[str, Any]) -> float:
    """Return the default of SMITH_PLAYBOOK_TIMEOUT_S."""
    return float(settings["fulcrum_job_timeout_s"] * PLAYBOOK_SHARE)


class RunSettings(Area):
    """How many jobs run at once, and how long they may take."""

    smith_concurrency: int = whole_number(
        0,
        "maximum number of jobs that run at once; 0: as many as cores and memory allow, at most 20 per core",
        ge=0,
        le=256,
    )
    smith_clones_per_storage: int = whole_number(
        40,
        "maximum number of clones that run at once per storage (per node for a local storage); the agent allows fewer "
        "while clones wait for the storage's lock",
        ge=1,
        le=256,
    )
    smith_warm: Annotated[Literal["auto", "on", "off"], AnyCase] = setting(
        "auto",
        "whether runs are forked from preloaded Ansible processes; auto: if the installed Ansible versions were tested "
        "for it, on: always, and the agent does not start with other versions, off: never",
        example="auto",
    )
    smith_lease_s: float = seconds(
        30, "time after which the jobs of an agent that stopped renewing its lease go to another agent", ge=1, le=3600
    )
    smith_playbook_timeout_s: float = seconds(
        _playbook_timeout_s,
        "timeout of one playbook run; it must be less than FULCRUM_JOB_TIMEOUT_S",
        ge=1,
        example="240",
        default_text="80 % of FULCRUM_JOB_TIMEOUT_S",
    )
    smith_shutdown_timeout_s: float = seconds(
        60, "time that a guest has to shut down before it is powered off", ge=1, le=3600
    )
    smith_address_timeout_s: float = seconds(
        10,
        "time that a start waits for the guest agent to report an IP address; without one the start still succeeds. "
        "0: the start asks once",
        ge=0,
        le=600,
    )

    @field_validator("smith_playbook_timeout_s")
    @classmethod
    def _require_less_than_job_timeout(cls, value: float, info: ValidationInfo) -> float:
        job_timeout_s = info.data.get("fulcrum_job_timeout_s")
        if job_timeout_s is not None and value >= job_timeout_s:
            raise ValueError(
                f"is wrong, it must be less than FULCRUM_JOB_TIMEOUT_S ({job_timeout_s:g}), "
                "or FulcrumCore fails the job while the playbook still runs"
            )
        return value
