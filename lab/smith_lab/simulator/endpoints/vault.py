"""Handles the call by which an agent reads a secret from the vault."""

from __future__ import annotations

from smith_lab.simulator.problems import not_found, panic_answer
from smith_lab.simulator.web import AGENTS, Call, Endpoint, Reply


def _read_secret(call: Call) -> Reply:
    """Return a secret. Every agent may read every secret.

    `reference` in the path is the secret's id. A property refers to the secret by `vault://` and this id.
    """
    # FulcrumCore panics on this call if it has no encryption key for the vault. The switch `vault_off`, which tests
    # turn on by POST /lab/switches, simulates the missing key.
    if call.store.switches.vault_off:
        raise panic_answer()
    if call.path_params["reference"] not in call.store.vault.secrets:
        raise not_found()
    return Reply(body={"value": call.store.vault.secrets[call.path_params["reference"]]})


ENDPOINTS = [Endpoint(method="GET", path="/vault/secrets/{reference}", handler=_read_secret, roles=AGENTS)]
