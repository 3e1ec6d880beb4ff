"""Declares the settings of the connection to Proxmox, with the variable names of the community.proxmox collection."""

from __future__ import annotations

from pydantic import SecretStr

from executor.settings.declare import Area, setting, whole_number
from executor.settings.problems import is_set, missing_lines, problem_line_of, raise_if_any
from executor.settings.types import Host, Password, ReadableFile, Token, TokenId, User


class ProxmoxSettings(Area):
    """How the agent connects to Proxmox, and as which user."""

    proxmox_host: Host = setting(
        "",
        "host name or address of a cluster node, or of a load balancer in front of the cluster",
        default_text="none, required",
        example="pve1.example.net",
    )
    proxmox_port: int = whole_number(8006, "port of the Proxmox API", ge=1, le=65_535)
    proxmox_user: User = setting(
        "",
        "user that the token or the password belongs to, with its realm",
        default_text="none, required",
        example="smith@pve",
    )
    proxmox_token_id: TokenId = setting(
        "",
        "name of the user's API token, without the user",
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

    def require_proxmox(self) -> None:
        """Raise SettingsError if the connection lacks a variable, or if both a token and a password are set."""
        lines = missing_lines(self, "PROXMOX_HOST", "PROXMOX_USER")
        token, password = ("PROXMOX_TOKEN_ID", "PROXMOX_TOKEN_SECRET"), "PROXMOX_PASSWORD"
        missing_token_lines = missing_lines(self, *token)
        if not is_set(self, password):
            lines += missing_token_lines
        elif len(missing_token_lines) < len(token):
            # The Ansible modules would use the password, and proxmoxer would use the token. The two may have different
            # privileges.
            lines.append(
                problem_line_of(self, password, "must not be set beside PROXMOX_TOKEN_ID and PROXMOX_TOKEN_SECRET")
            )
        raise_if_any(lines)
