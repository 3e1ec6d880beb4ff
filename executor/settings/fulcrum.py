"""Declares the settings of the connection to FulcrumCore."""

from __future__ import annotations

from pydantic import SecretStr

from executor.settings.declare import Area, seconds, setting
from executor.settings.problems import missing_lines, raise_if_any
from executor.settings.types import ReadableFile, ServerUrl, Token

#: FulcrumCore marks an agent as disconnected after 30 s without a heartbeat. So a heartbeat request may take 5 s.
MAX_HEARTBEAT_INTERVAL_S = 25


class FulcrumSettings(Area):
    """How the agent connects to FulcrumCore, and how often it sends requests."""

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
    fulcrum_job_timeout_s: float = seconds(
        300,
        "job timeout in FulcrumCore's own configuration, measured from the creation of the job; it must be repeated "
        "here, because FulcrumCore's API does not return it",
        ge=10,
    )
    fulcrum_poll_interval_s: float = seconds(2, "interval between two requests for pending jobs", ge=0.1, le=3600)
    fulcrum_heartbeat_interval_s: float = seconds(
        10,
        "interval between two heartbeats; FulcrumCore marks an agent as disconnected after 30 s without one",
        ge=0.1,
        le=MAX_HEARTBEAT_INTERVAL_S,
    )

    def require_fulcrum(self) -> None:
        """Raise SettingsError if the connection lacks a variable. The exception names every missing variable."""
        raise_if_any(missing_lines(self, "FULCRUM_API_URL", "FULCRUM_API_TOKEN"))

    def require_fulcrum_address(self) -> None:
        """Raise SettingsError if FulcrumCore's URL is missing.

        Callers use this instead of `require_fulcrum` if they have another token than the agent's.
        """
        raise_if_any(missing_lines(self, "FULCRUM_API_URL"))
