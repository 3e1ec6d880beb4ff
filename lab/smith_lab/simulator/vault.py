"""Stores secrets in memory. A property contains a reference (`vault://` and a UUID) instead of the secret itself."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

VAULT_PREFIX = "vault://"


class VaultDisabled(Exception):
    """The server has no key for the encryption of secrets, so it cannot store secrets."""


@dataclass
class Vault:
    """The stored secrets. `secrets` maps the UUID in a reference to the secret.

    As in FulcrumCore, if a request deletes a secret and is then refused, the secret stays deleted.
    """

    is_enabled: bool = True
    secrets: dict[str, Any] = field(default_factory=dict)

    def save(self, value: Any) -> str:
        """Store a value; return its `vault://` reference."""
        if not self.is_enabled:
            raise VaultDisabled
        secret_id = str(uuid.uuid4())
        self.secrets[secret_id] = value
        return VAULT_PREFIX + secret_id

    def delete(self, reference: Any) -> None:
        """Delete the secret of a `vault://` reference. Ignore a value that is not a reference."""
        if isinstance(reference, str) and reference.startswith(VAULT_PREFIX):
            self.secrets.pop(reference.removeprefix(VAULT_PREFIX), None)
