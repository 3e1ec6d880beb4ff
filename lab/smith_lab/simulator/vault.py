"""Stores secrets in memory. Properties contain a reference (`vault://` and a UUID) instead of the secret itself."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

VAULT_PREFIX = "vault://"


class VaultDisabled(Exception):
    """The server has no vault key, so it cannot store secrets."""


@dataclass
class Vault:
    """Maps references to secrets. As in the real server, a deletion is not undone if the request fails later."""

    enabled: bool = True
    secrets: dict[str, Any] = field(default_factory=dict)

    def save(self, value: Any) -> str:
        """Store a value; return its `vault://` reference."""
        if not self.enabled:
            raise VaultDisabled
        reference = str(uuid.uuid4())
        self.secrets[reference] = value
        return VAULT_PREFIX + reference

    def delete(self, text: Any) -> None:
        """Delete the secret that a `vault://` reference names; ignore any other text."""
        if isinstance(text, str) and text.startswith(VAULT_PREFIX):
            self.secrets.pop(text.removeprefix(VAULT_PREFIX), None)
