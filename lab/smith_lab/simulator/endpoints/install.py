"""Handles install commands, and the configuration that an install command fetches.

An install command is a shell command that installs an agent on a host. It contains a URL for the configuration and a
bearer token. Both are valid for five minutes.
"""

from __future__ import annotations

import secrets
from typing import Any

from smith_lab.simulator import go_template
from smith_lab.simulator.clock import to_text
from smith_lab.simulator.endpoints.agents import agent_scope
from smith_lab.simulator.go_template_parser import TemplateError
from smith_lab.simulator.problems import Problem, bad_request, conflict, internal, not_found
from smith_lab.simulator.rows import Agent, InstallToken
from smith_lab.simulator.store import Store
from smith_lab.simulator.vault import VAULT_PREFIX
from smith_lab.simulator.web import ANY_ROLE, NO_CONTENT, USERS, Call, Endpoint, Reply

#: Seconds for which the URL and the bearer token in an install command are valid.
LIFETIME_S = 300.0


def _create(call: Call) -> Reply:
    _refuse_without_templates(call)
    if call.id in call.store.install_tokens:
        raise conflict(f"install token already exists for agent {call.id}")
    return _issue(call, status=201)


def _regenerate(call: Call) -> Reply:
    """Return an install command with a new URL and a new bearer token. The old URL and token are invalid at once."""
    _refuse_without_templates(call)
    _delete_install_token(call)
    return _issue(call, status=200)


def _refuse_without_templates(call: Call) -> None:
    agent = call.store.agents[call.id]
    if not call.store.agent_types[agent.agent_type_id].cmd_template:
        raise bad_request("agent type has no install templates configured")


def _issue(call: Call, *, status: int) -> Reply:
    """Create a bearer token and an install token, which is a part of the URL; return the command that contains both."""
    store, agent = call.store, call.store.agents[call.id]
    bearer = store.add_token(
        name=f"install-bootstrap-{agent.id}",
        role="agent",
        lifetime_s=LIFETIME_S,
        agent_id=agent.id,
        participant_id=agent.provider_id,
    )
    row = InstallToken(
        **store.new_row_fields(),
        agent_id=agent.id,
        value=secrets.token_urlsafe(32),
        expires_at=store.clock.now() + LIFETIME_S,
        bootstrap_token_id=bearer.id,
    )
    store.install_tokens[agent.id] = row
    url = f"{store.options.public_base_url or store.origin}/api/v1/agents/install/{row.value}/config"
    command = _render_command(store, agent, url, bearer.value)
    return Reply(status=status, body={"installCommand": command, "url": url, "expiresAt": to_text(row.expires_at)})


def _render_command(store: Store, agent: Agent, url: str, bearer: str) -> str:
    template = store.agent_types[agent.agent_type_id].cmd_template
    try:
        return go_template.render(template, {**(agent.configuration or {}), "configUrl": url, "authToken": bearer})
    except TemplateError as exc:
        raise internal(str(exc)) from exc


def _find_install_token(call: Call) -> InstallToken:
    row = call.store.install_tokens.get(call.id)
    if row is None:
        raise not_found()
    return row


def _get(call: Call) -> Reply:
    row = _find_install_token(call)
    return Reply(body={"id": row.id, "expiresAt": to_text(row.expires_at), "createdAt": to_text(row.created_at)})


def _revoke(call: Call) -> Reply:
    _delete_install_token(call)
    return NO_CONTENT


def _delete_install_token(call: Call) -> None:
    row = _find_install_token(call)
    bearer = call.store.tokens.get(row.bootstrap_token_id)
    if bearer is not None:
        call.store.delete_token(bearer)
    del call.store.install_tokens[call.id]


def _fetch_configuration(call: Call) -> Reply:
    """Return the rendered configuration with secrets in clear text. A failure is answered 404 without a body."""
    store = call.store
    row = next((row for row in store.install_tokens.values() if row.value == call.path["token"]), None)
    if row is None or row.expires_at < store.clock.now():
        raise Problem(404, None)
    agent = store.agents[row.agent_id]
    agent_type = store.agent_types[agent.agent_type_id]
    try:
        data = _resolve_references(store, agent.configuration or {})
        text = go_template.render(agent_type.config_template, data)
    except (KeyError, TemplateError) as exc:
        raise Problem(404, None) from exc
    headers = {
        "Content-Type": agent_type.config_content_type,
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
    return Reply(text=text, headers=headers)


def _resolve_references(store: Store, value: Any) -> Any:
    """Return the value with secrets in place of their vault references. Raises KeyError for an unknown reference."""
    if isinstance(value, str) and value.startswith(VAULT_PREFIX):
        return store.vault.secrets[value.removeprefix(VAULT_PREFIX)]
    if isinstance(value, dict):
        return {name: _resolve_references(store, item) for name, item in value.items()}
    if isinstance(value, list):
        return [_resolve_references(store, item) for item in value]
    return value


_PATH = "/agents/{id}/install-command"

ENDPOINTS = [
    Endpoint(method="POST", path=_PATH, handler=_create, roles=USERS, scope=agent_scope),
    Endpoint(method="POST", path=f"{_PATH}/regenerate", handler=_regenerate, roles=USERS, scope=agent_scope),
    Endpoint(method="GET", path=_PATH, handler=_get, roles=ANY_ROLE, scope=agent_scope),
    Endpoint(method="DELETE", path=_PATH, handler=_revoke, roles=USERS, scope=agent_scope),
    Endpoint(method="GET", path="/agents/install/{token}/config", handler=_fetch_configuration, roles=ANY_ROLE),
]
