"""Declares the settings of the connection to Proxmox. Most are variables that community.proxmox reads, too."""

from __future__ import annotations

from pydantic import SecretStr

from executor.settings.declare import SettingsArea, setting, whole_number_setting
from executor.settings.problems import describe_missing_settings, has_value, problem_line, raise_if_problems
from executor.settings.types import Host, Password, ReadableFile, Token, TokenId, User


class ProxmoxSettings(SettingsArea):
    """Defines how the agent connects to Proxmox, and as which user."""

    proxmox_host: Host = setting(
        "",
        "host name or address of a cluster node, or of a load balancer in front of the cluster",
        default_text="none, required",
        example="pve1.example.net",
    )
    proxmox_port: int = whole_number_setting(8006, "port of the Proxmox API", ge=1, le=65_535)
    proxmox_user: User = setting(
        "",
        "user to whom the token or the password belongs, with the user's realm",
        default_text="none, required",
        example="smith@pve",
    )
    proxmox_token_id: TokenId = setting(
        "",
        "name of the user's API token: the part of the token ID after the `!`",
        default_text="none, required without a password",
        example="agent",
    )
    proxmox_token_secret: Token = setting(
        SecretStr(""),
        "secret of the API token",
        default_text="none, required without a password",
        example="01234567-89ab-cdef-0123-456789abcdef",
    )
    proxmox_password: Password = setting(
        SecretStr(""),
        "password of the user, if there is no API token",
        default_text="none, required without a token",
        example="correct-horse",
    )
    proxmox_validate_certs: bool = setting(
        True, "verify Proxmox's certificate; set it to false in a lab only", example="true"
    )
    proxmox_ca_bundle: ReadableFile | None = setting(
        None,
        "file with the CA certificates that verify Proxmox's certificate",
        example="/etc/ssl/pve-root-ca.pem",
        default_text="the system's CA certificates",
    )

    def require_proxmox_settings(self) -> None:
        """Raise SettingsError if a required setting is missing, or if both a token and a password are set."""
        lines = describe_missing_settings(self, "PROXMOX_HOST", "PROXMOX_USER")
        token_variables = ("PROXMOX_TOKEN_ID", "PROXMOX_TOKEN_SECRET")
        if not has_value(self, "PROXMOX_PASSWORD"):
            lines += describe_missing_settings(self, *token_variables)
        elif any(has_value(self, name) for name in token_variables):
            # The modules of community.proxmox would use the password, and the agent would use the token. The token may
            # have fewer privileges than the user with the password.
            problem = "must not be set together with PROXMOX_TOKEN_ID or PROXMOX_TOKEN_SECRET"
            lines.append(problem_line(type(self), "PROXMOX_PASSWORD", problem))
        raise_if_problems(lines)
