"""Handles API calls that manage install commands, and the call by which a host gets an agent's configuration file.

An install command is a shell command that installs an agent on a host. It contains a bearer token and the URL of the
agent's configuration file. The server makes this file from the agent's `configuration` and a template of the agent
type. A part of the URL is secret: the install token. Both tokens are valid for five minutes.

Admins and the agent's provider (a participant in FulcrumCore) may create, renew and revoke an install command. They and
the agent may read the expiry time of the tokens in the command.
"""

from __future__ import annotations

from typing import Any

from smith_lab.simulator import go_template
from smith_lab.simulator.clock import time_to_text
from smith_lab.simulator.endpoints.agents import find_agent_owners
from smith_lab.simulator.go_template_parser import TemplateError
from smith_lab.simulator.problems import bad_request, conflict, internal_error, not_found
from smith_lab.simulator.rows import Agent, InstallToken
from smith_lab.simulator.store import Store, new_secret
from smith_lab.simulator.vault import VAULT_PREFIX
from smith_lab.simulator.web import ADMINS_AND_PARTICIPANTS, ANY_ROLE, NO_CONTENT, Call, Endpoint, Reply

#: How long both tokens in an install command are valid.
TOKEN_LIFETIME_S = 300.0


def _create_install_command(call: Call) -> Reply:
    """Return a new install command for an agent. `call.id` is the agent's id in the path of the request."""
    _require_command_template(call)
    if call.id in call.store.install_tokens:
        raise conflict(f"install token already exists for agent {call.id}")
    return _make_install_command(call, status=201, event_type="agent.install_token_created")


def _regenerate_install_command(call: Call) -> Reply:
    """Return an install command with two new tokens. The old tokens are invalid at once."""
    _require_command_template(call)
    _delete_both_tokens(call)
    return _make_install_command(call, status=200, event_type="agent.install_token_regenerated")


def _require_command_template(call: Call) -> None:
    """Raise a 400 if the agent type has no template of the install command."""
    agent = call.store.agents[call.id]
    if not call.store.agent_types[agent.agent_type_id].cmd_template:
        raise bad_request("agent type has no install templates configured")


def _make_install_command(call: Call, *, status: int, event_type: str) -> Reply:
    """Create both tokens, and return the install command that contains them."""
    store, agent = call.store, call.store.agents[call.id]
    bearer_token = store.add_token(
        name=f"install-bootstrap-{agent.id}",
        role="agent",
        lifetime_s=TOKEN_LIFETIME_S,
        agent_id=agent.id,
        participant_id=agent.provider_id,
    )
    install_token = InstallToken(
        **store.new_row_fields(),
        agent_id=agent.id,
        value=new_secret(),
        expires_at=store.clock.now() + TOKEN_LIFETIME_S,
        bearer_token_id=bearer_token.id,
    )
    store.install_tokens[agent.id] = install_token
    # `store.options` are the settings of this server. `store.origin` is the URL of this server.
    base_url = store.options.public_base_url or store.origin
    url = f"{base_url}/api/v1/agents/install/{install_token.value}/config"
    command = _render_command(store, agent, url, bearer_token.value)
    expires_at = time_to_text(install_token.expires_at)
    call.record_event(event_type, agent)
    body = {"installCommand": command, "url": url, "expiresAt": expires_at}
    return Reply(status=status, body=body, headers={"Content-Type": "application/json; charset=utf-8"})


def _render_command(store: Store, agent: Agent, url: str, bearer_token: str) -> str:
    template = store.agent_types[agent.agent_type_id].cmd_template
    data = {**(agent.configuration or {}), "configUrl": url, "authToken": bearer_token}
    try:
        return go_template.render(template, data)
    except TemplateError as exc:
        raise internal_error(str(exc)) from exc


def _find_install_token(call: Call) -> InstallToken:
    """Return the install token of the agent with the id in the call's path. Raises a 404 if the agent has none."""
    row = call.store.install_tokens.get(call.id)
    if row is None:
        raise not_found()
    return row


def _get_install_token(call: Call) -> Reply:
    """Return the id and the times of the install token. The values of both tokens are secret and not in the answer."""
    row = _find_install_token(call)
    return Reply(
        body={"id": row.id, "expiresAt": time_to_text(row.expires_at), "createdAt": time_to_text(row.created_at)}
    )


def _revoke_install_token(call: Call) -> Reply:
    _delete_both_tokens(call)
    call.record_event("agent.install_token_revoked", call.store.agents[call.id])
    return NO_CONTENT


def _delete_both_tokens(call: Call) -> None:
    """Delete the agent's install token, and the bearer token in the same install command."""
    row = _find_install_token(call)
    bearer_token = call.store.tokens.get(row.bearer_token_id)
    if bearer_token is not None:
        call.store.delete_token(bearer_token)
    del call.store.install_tokens[call.id]


def _serve_configuration(call: Call) -> Reply:
    """Return the agent's configuration file with secrets in clear text.

    Raises a 404 for an unknown or expired install token, or if the file cannot be rendered.
    """
    store = call.store
    row = next((row for row in store.install_tokens.values() if row.value == call.path_params.get("token")), None)
    if row is None or row.expires_at < store.clock.now():
        raise not_found()
    agent = store.agents[row.agent_id]
    agent_type = store.agent_types[agent.agent_type_id]
    try:
        data = _resolve_references(store, agent.configuration or {})
        text = go_template.render(agent_type.config_template, data)
    except (KeyError, TemplateError) as exc:
        raise not_found() from exc
    headers = {
        "Content-Type": agent_type.config_content_type,
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
    return Reply(text=text, headers=headers)


def _resolve_references(store: Store, value: Any) -> Any:
    """Return the value with each reference to the vault (the store of secrets) replaced by the secret.

    Raises KeyError for an unknown reference.
    """
    if isinstance(value, str) and value.startswith(VAULT_PREFIX):
        return store.vault.secrets[value.removeprefix(VAULT_PREFIX)]
    if isinstance(value, dict):
        return {name: _resolve_references(store, item) for name, item in value.items()}
    if isinstance(value, list):
        return [_resolve_references(store, item) for item in value]
    return value


_INSTALL_COMMAND_PATH = "/agents/{id}/install-command"

ENDPOINTS = [
    Endpoint(
        method="POST",
        path=_INSTALL_COMMAND_PATH,
        handler=_create_install_command,
        roles=ADMINS_AND_PARTICIPANTS,
        find_owners=find_agent_owners,
    ),
    Endpoint(
        method="POST",
        path=f"{_INSTALL_COMMAND_PATH}/regenerate",
        handler=_regenerate_install_command,
        roles=ADMINS_AND_PARTICIPANTS,
        find_owners=find_agent_owners,
    ),
    Endpoint(
        method="GET",
        path=_INSTALL_COMMAND_PATH,
        handler=_get_install_token,
        roles=ANY_ROLE,
        find_owners=find_agent_owners,
    ),
    Endpoint(
        method="DELETE",
        path=_INSTALL_COMMAND_PATH,
        handler=_revoke_install_token,
        roles=ADMINS_AND_PARTICIPANTS,
        find_owners=find_agent_owners,
    ),
    # No `find_owners`: every caller that knows a valid install token may read the file.
    Endpoint(method="GET", path="/agents/install/{token}/config", handler=_serve_configuration, roles=ANY_ROLE),
]
