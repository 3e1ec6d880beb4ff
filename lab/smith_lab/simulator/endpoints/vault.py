"""Serves the secrets of the vault to agents."""

from __future__ import annotations

from smith_lab.simulator.problems import not_found, panic
from smith_lab.simulator.web import AGENTS, Call, Endpoint, Reply


def _read_secret(call: Call) -> Reply:
    """Return a secret. Every agent may read every secret. If the real server has no vault key, it panics."""
    if call.store.switches.vault_off:
        raise panic()
    if call.path["reference"] not in call.store.vault.secrets:
        raise not_found()
    return Reply(body={"value": call.store.vault.secrets[call.path["reference"]]})


ENDPOINTS = [Endpoint(method="GET", path="/vault/secrets/{reference}", handler=_read_secret, roles=AGENTS)]
