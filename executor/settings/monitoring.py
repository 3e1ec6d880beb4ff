"""Declares the settings of the HTTP server (web pages, health checks, metrics) and of the logs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import SecretStr, ValidationInfo, field_validator

from executor.settings.declare import SettingsArea, setting
from executor.settings.sources import DEFAULT_HTTP_ADDR
from executor.settings.types import (
    CaseInsensitive,
    HeaderName,
    ListenAddress,
    Networks,
    ReadableFile,
    Token,
    is_local_address,
)

MIN_HTTP_TOKEN_LENGTH = 16


class MonitoringSettings(SettingsArea):
    """Defines where web pages, health checks and metrics are served, who may read them, and the format of the logs."""

    smith_http_token: Token = setting(
        SecretStr(""),
        "token for the web pages and metrics: operators enter it at the login, and programs send it as "
        "`Authorization: Bearer`; not required if SMITH_HTTP_ADDR is a loopback address or off, or if "
        "SMITH_HTTP_PROXIES is set",
        default_text="none",
        example="sixteen-characters-or-more",
    )
    smith_http_proxies: Networks = setting(
        (),
        "addresses or networks of trusted reverse proxies, which send the name of the authenticated user in the header "
        "SMITH_HTTP_USER_HEADER",
        default_text="none",
        example="192.0.2.7,10.8.0.0/24",
    )
    smith_http_user_header: HeaderName = setting(
        "X-Forwarded-User",
        "header in which the proxies (SMITH_HTTP_PROXIES) send the name of the authenticated user; they must remove "
        "this header from requests of clients",
        example="X-Forwarded-User",
    )
    smith_http_addr: ListenAddress = setting(
        DEFAULT_HTTP_ADDR,
        "address and port of the HTTP server for web pages, health checks and Prometheus metrics; off: no HTTP server",
        example=DEFAULT_HTTP_ADDR,
    )
    smith_http_local_pages: bool = setting(
        False,
        "let every user of this machine read the web pages without a login; not possible together with "
        "SMITH_HTTP_TOKEN or SMITH_HTTP_PROXIES. Without a login, nothing can be changed on the web pages",
        example="true",
    )
    smith_http_tls_certificate: ReadableFile | None = setting(
        None,
        "file (PEM) with the certificate of the HTTP server and the certificates of intermediate CAs; with this file, "
        "the HTTP server uses TLS. A renewed file is used within a minute",
        default_text="no TLS",
        example="/etc/agent-smith/pages.pem",
    )
    smith_http_tls_key: ReadableFile | None = setting(
        None,
        "file (PEM) with the private key of SMITH_HTTP_TLS_CERTIFICATE, without a password",
        default_text="the file of the certificate",
        example="/etc/agent-smith/pages.key",
    )
    smith_log_format: Annotated[Literal["auto", "json", "console"], CaseInsensitive] = setting(
        "auto", "format of the logs: json, console, or auto (console on a terminal, else json)", example="json"
    )
    smith_log_level: Annotated[Literal["debug", "info", "warning", "error"], CaseInsensitive] = setting(
        "info", "lowest level that is logged; third-party libraries log warnings and errors only", example="info"
    )

    @field_validator("smith_http_token")
    @classmethod
    def _require_min_length(cls, value: SecretStr) -> SecretStr:
        # Pydantic does not check the default ''. This default means that there is no token.
        if len(value.get_secret_value()) < MIN_HTTP_TOKEN_LENGTH:
            raise ValueError(f"is wrong, it is shorter than {MIN_HTTP_TOKEN_LENGTH} characters")
        return value

    @field_validator("smith_http_local_pages")
    @classmethod
    def _refuse_local_pages_with_login(cls, value: bool, info: ValidationInfo) -> bool:
        # A setting is missing in `info.data` if pydantic has rejected its value. Pydantic reports this problem itself.
        token, proxies = info.data.get("smith_http_token"), info.data.get("smith_http_proxies")
        if value and ((token is not None and token.get_secret_value()) or proxies):
            raise ValueError("is wrong, it cannot be combined with SMITH_HTTP_TOKEN or SMITH_HTTP_PROXIES")
        return value

    @field_validator("smith_http_tls_key")
    @classmethod
    def _require_certificate(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        # The certificate is None if it is not set, and missing in `info.data` if pydantic has rejected it.
        is_certificate_unset = info.data.get("smith_http_tls_certificate", "rejected") is None
        if value is not None and is_certificate_unset:
            raise ValueError("is wrong, SMITH_HTTP_TLS_CERTIFICATE must be set, too")
        return value

    @field_validator("smith_http_addr")
    @classmethod
    def _require_local_or_authenticated(cls, value: str, info: ValidationInfo) -> str:
        token = info.data.get("smith_http_token")
        proxies = info.data.get("smith_http_proxies")
        if token is None or proxies is None:
            return value  # pydantic has rejected the token or the proxies, and reports this problem itself
        needs_login = bool(token.get_secret_value() or proxies)
        if not needs_login and not is_local_address(value):  # `off` counts as local
            raise ValueError(
                f"is wrong, other machines can reach {value}, so SMITH_HTTP_TOKEN or SMITH_HTTP_PROXIES must be set"
            )
        return value
