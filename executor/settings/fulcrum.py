"""Declares the settings of the connection to FulcrumCore."""

from __future__ import annotations

from pydantic import SecretStr, ValidationInfo, field_validator

from executor.settings.declare import SettingsArea, duration_setting, setting
from executor.settings.problems import describe_missing_settings, raise_if_problems
from executor.settings.types import ReadableFile, ServerUrl, Token

#: The maximum interval between two heartbeats. FulcrumCore marks an agent as disconnected after 30 s without a
#: heartbeat; the remaining 5 s are for the heartbeat request.
MAX_HEARTBEAT_INTERVAL_S = 25
#: The time that the shortest run and the report of its result need. If less time is left until FulcrumCore's job
#: timeout, the job fails without a run.
MIN_TIME_FOR_JOB_S = 20


class FulcrumSettings(SettingsArea):
    """Defines how the agent connects to FulcrumCore, and how often it sends requests."""

    fulcrum_api_url: ServerUrl = setting(
        "",
        "URL of FulcrumCore, without the path `/api/v1`",
        default_text="none, required",
        example="https://core.example.net",
    )
    fulcrum_api_token: Token = setting(
        SecretStr(""),
        "token of this agent, created by an administrator of FulcrumCore",
        default_text="none, required",
        example="the-token-shown-once",
    )
    fulcrum_ca_bundle: ReadableFile | None = setting(
        None,
        "file with the CA certificates that verify FulcrumCore's certificate",
        example="/etc/ssl/core-ca.pem",
        default_text="the system's CA certificates",
    )
    fulcrum_verify_tls: bool = setting(
        True, "verify FulcrumCore's certificate; set it to false in a lab only", example="true"
    )
    fulcrum_job_timeout_s: float = duration_setting(
        300,
        "time from the creation of a job until FulcrumCore fails the job; set this to the job timeout in FulcrumCore's "
        "own configuration, because FulcrumCore's API does not return that timeout",
        ge=30,
    )
    fulcrum_poll_interval_s: float = duration_setting(
        2,
        "interval between two requests for pending jobs; at most FULCRUM_JOB_TIMEOUT_S minus the 20 s that a job needs",
        ge=0.1,
        le=3600,
    )
    fulcrum_heartbeat_interval_s: float = duration_setting(
        10,
        "interval between two heartbeats; FulcrumCore marks an agent as disconnected after 30 s without one",
        ge=0.1,
        le=MAX_HEARTBEAT_INTERVAL_S,
    )

    @field_validator("fulcrum_poll_interval_s")
    @classmethod
    def _require_time_for_jobs(cls, value: float, info: ValidationInfo) -> float:
        job_timeout_s = info.data.get("fulcrum_job_timeout_s")  # absent if pydantic has rejected its value
        if job_timeout_s is not None and value > job_timeout_s - MIN_TIME_FOR_JOB_S:
            raise ValueError(
                f"must be at most {job_timeout_s - MIN_TIME_FOR_JOB_S:g} with FULCRUM_JOB_TIMEOUT_S={job_timeout_s:g}, "
                f"because a job may wait for one interval and then needs {MIN_TIME_FOR_JOB_S} s"
            )
        return value

    def require_fulcrum_settings(self) -> None:
        """Raise SettingsError, with the names of the missing variables, if the URL or the agent's token is missing."""
        raise_if_problems(describe_missing_settings(self, "FULCRUM_API_URL", "FULCRUM_API_TOKEN"))

    def require_fulcrum_url(self) -> None:
        """Raise SettingsError if FulcrumCore's URL is missing.

        A caller that uses the token of an administrator instead of FULCRUM_API_TOKEN calls this method and not
        `require_fulcrum_settings`.
        """
        raise_if_problems(describe_missing_settings(self, "FULCRUM_API_URL"))
