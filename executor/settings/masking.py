"""Returns the secrets in the settings, which the redactor must mask, and masks the passwords in a database URL."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import parse_qs, unquote, urlsplit

from executor.redaction import MASK
from executor.settings.settings import Settings


def secret_values(settings: Settings) -> tuple[str, ...]:
    """Return every secret in the settings. The caller adds these secrets to the redactor."""
    tokens = (
        settings.fulcrum_api_token,
        settings.proxmox_token_secret,
        settings.proxmox_password,
        settings.smith_http_token,
    )
    secrets = [*(token.get_secret_value() for token in tokens), *_passwords_in(settings.smith_database_url)]
    return tuple(dict.fromkeys(secret for secret in secrets if secret))


def without_passwords(url: str) -> str:
    """Return a database URL with its passwords masked."""
    for password in sorted(filter(None, _passwords_in(url)), key=len, reverse=True):
        url = url.replace(password, MASK)
    return url


def _passwords_in(url: str) -> Iterator[str]:
    """Yield each password in a database URL twice: as it is written in the URL, and percent-decoded."""
    parts = urlsplit(url)
    for written in (parts.password or "", *parse_qs(parts.query).get("password", [])):
        yield from (written, unquote(written))
