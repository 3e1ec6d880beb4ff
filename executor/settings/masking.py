"""Returns the secrets in the settings, so that logs can mask them, and masks the passwords in a database URL."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import unquote, unquote_plus, urlsplit

from executor.redaction import MASK
from executor.settings.settings import Settings


def secret_values(settings: Settings) -> tuple[str, ...]:
    """Return every secret in the settings. The caller adds the secrets to the redactor, which masks them in logs."""
    secret_settings = (
        settings.fulcrum_api_token,
        settings.proxmox_token_secret,
        settings.proxmox_password,
        settings.smith_http_token,
    )
    secrets = [*(secret.get_secret_value() for secret in secret_settings), *passwords_in(settings.smith_database_url)]
    return tuple(dict.fromkeys(secret for secret in secrets if secret))


def mask_passwords(url: str) -> str:
    """Return a database URL with its passwords masked."""
    # The longest password comes first, because a long password may contain a shorter one.
    for password in sorted(passwords_in(url), key=len, reverse=True):
        url = url.replace(password, MASK)
    return url


def passwords_in(url: str) -> Iterator[str]:
    """Yield each password in a database URL as written, percent-decoded, and percent-decoded with `+` as a space.

    The password may be before the host, or in the parameter `password` of the query.
    """
    parts = urlsplit(url)
    query = (parameter.partition("=") for parameter in parts.query.split("&"))
    passwords_in_query = [value for name, _equals_sign, value in query if unquote_plus(name) == "password"]
    for password in (parts.password or "", *passwords_in_query):
        if password:
            yield password
            yield unquote_plus(password)
            yield unquote(password)
