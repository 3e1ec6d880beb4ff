"""`smith bootstrap`: creates the agent, its token and its types in FulcrumCore, with an administrator's token."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from executor.cli.arguments import AsJson
from executor.cli.bootstrap_token import TokenDestination, TokenNotStored
from executor.cli.context import open_settings
from executor.cli.help_text import examples
from executor.cli.output import show_error, show_json, show_text
from executor.cli.tables import show_rows
from executor.errors import FulcrumAuthFailing, SettingsError
from executor.fulcrum.admin import FulcrumAdmin
from executor.fulcrum.bootstrap import (
    AGENT_TYPE_FILE,
    SERVICE_TYPE_FILE,
    Bootstrap,
    BootstrapRequest,
    Step,
    load_type,
)
from executor.fulcrum.client import FulcrumClient
from executor.redaction import redactor
from executor.settings.settings import Settings
from executor.settings.sources import read_secret_file

#: The environment variable with the administrator's token. Its name does not begin with FULCRUM_, because such
#: variables are the agent's settings, and the agent must not have this token.
ADMIN_TOKEN = "CORE_ADMIN_TOKEN"  # noqa: S105 (the name of a variable, not a secret)
COLUMNS = {"kind": "WHAT", "name": "NAME", "status": "STATUS", "id": "ID", "differences": "DIFFERS IN"}
MAX_SHOWN_DIFFERENCES = 3
DEFAULT_TOKEN_DAYS = 3650
DEFAULT_TAGS = ("proxmox",)


@examples(
    "smith bootstrap core --agent smith-dc1 --provider 'My cloud' --admin-token-file admin-token --dry-run",
    "smith bootstrap core --agent smith-dc1 --provider 'My cloud' --admin-token-file admin-token \\",
    "    --token-file fulcrum_api_token",
)
def core(  # noqa: PLR0913, PLR0917 (each parameter is an option; typer passes all by name)
    agent: Annotated[str, typer.Option("--agent", help="The agent's name.")],
    provider: Annotated[str, typer.Option("--provider", help="The agent's provider, a participant: its name or id.")],
    create_provider: Annotated[
        bool, typer.Option("--create-provider", help="Create the participant if none has this name.")
    ] = False,
    admin_token_file: Annotated[
        Path | None,
        typer.Option("--admin-token-file", help=f"File with the administrator's token; default: ${ADMIN_TOKEN}."),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", help="Write the agent's new token to this new file."),
    ] = None,
    show_token: Annotated[bool, typer.Option("--show-token", help="Print the agent's new token.")] = False,
    new_token: Annotated[bool, typer.Option("--new-token", help="Create a token even if the agent has one.")] = False,
    token_days: Annotated[
        int, typer.Option("--token-days", min=1, max=36_500, help="Days until the new token expires.")
    ] = DEFAULT_TOKEN_DAYS,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="A tag of the agent; may be repeated.")] = None,
    service_type_file: Annotated[
        Path | None, typer.Option("--service-type-file", help="Your own service type; default: ours.")
    ] = None,
    agent_type_file: Annotated[
        Path | None, typer.Option("--agent-type-file", help="Your own agent type; default: ours.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be created, and create nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Create the agent, its token and its types in FulcrumCore.

    The types are a service type, an agent type and metric types.
    FULCRUM_API_URL is FulcrumCore's address. The administrator's token comes from a file or the environment, and is
    not stored.

    Existing objects of the same name are not changed; differences are shown. A second run creates only what is missing.
    """
    settings = open_settings()
    settings.require_fulcrum_address()
    request = BootstrapRequest(
        agent=agent,
        provider=provider,
        may_create_provider=create_provider,
        service_type=_read_type(service_type_file, "service"),
        agent_type=_read_type(agent_type_file, "agent"),
        tags=tuple(tag or DEFAULT_TAGS),
        token_lifetime=timedelta(days=token_days),
        wants_new_token=new_token,
    )
    admin_token = _admin_token(admin_token_file)
    with _adding_token_hint():
        bootstrap = Bootstrap(_client(settings, admin_token), request)
        with TokenDestination(token_file, is_shown=show_token, is_needed=bootstrap.needs_token) as destination:
            steps = _execute(bootstrap, destination, dry_run=dry_run, show_table=not as_json)
    if as_json:
        _show_json(bootstrap, destination, steps, dry_run=dry_run)
    else:
        _show_token(destination, dry_run=dry_run)
    if not bootstrap.needs_token and token_file:
        _refuse_other_token(settings, token_file, bootstrap.agent_id)


def _execute(bootstrap: Bootstrap, destination: TokenDestination, *, dry_run: bool, show_table: bool) -> list[Step]:
    """Execute all steps, show them, and return them. If a step fails, the steps before it are shown.

    With `dry_run`, each step only compares: it creates nothing in FulcrumCore.
    """
    steps: list[Step] = []
    try:
        if not dry_run:
            destination.reserve()
        for step in bootstrap.dry_run() if dry_run else bootstrap.create_missing(destination.store):
            steps.append(step)
    finally:
        if show_table and steps:
            show_rows([_table_row(step) for step in steps], COLUMNS, if_empty="")
    return steps


def _table_row(step: Step) -> dict[str, Any]:
    differences = list(step.differences[:MAX_SHOWN_DIFFERENCES])
    if (omitted := len(step.differences) - len(differences)) > 0:
        differences.append(f"and {omitted} more (--json lists all)")
    status = "would be created" if step.status == "missing" else step.status.value
    return {
        "kind": step.kind,
        "name": step.name,
        "status": status,
        "id": step.id,
        "differences": ", ".join(differences),
    }


def _show_json(bootstrap: Bootstrap, destination: TokenDestination, steps: list[Step], *, dry_run: bool) -> None:
    document: dict[str, Any] = {
        "dry_run": dry_run,
        "agent_id": bootstrap.agent_id,
        "steps": [asdict(step) for step in steps],
    }
    show_json(document | ({"token": destination.value} if destination.is_shown else {}))


def _show_token(destination: TokenDestination, *, dry_run: bool) -> None:
    if dry_run:
        show_text("nothing was created: this was a dry run")
    elif destination.value and destination.file:
        show_text(f"the agent's token is in {destination.file}; FulcrumCore does not show it again")
    if destination.value and destination.is_shown:
        show_text(destination.value)


def _admin_token(file: Path | None) -> str:
    """Return the administrator's token from the file or the environment, and register it with the redactor.

    Raises SettingsError if there is no token.
    """
    token = read_secret_file(file) if file else os.environ.get(ADMIN_TOKEN, "").strip()
    if not token:
        raise SettingsError(f"an administrator's token is missing: use --admin-token-file FILE, or set {ADMIN_TOKEN}")
    redactor.add(token)
    return token


def _refuse_other_token(settings: Settings, file: Path, agent_id: str | None) -> None:
    """Raise TokenNotStored unless the file contains a token that FulcrumCore accepts for this agent.

    Called when --token-file is set but this command has created no token, because the agent has one already.
    """
    remedy = "the agent has a token, which FulcrumCore does not show again: --new-token creates another"
    if not file.exists():
        raise TokenNotStored(f"{file} was not written: {remedy}")
    token = read_secret_file(file)
    redactor.add(token)
    client = FulcrumClient(settings.fulcrum_api_url, lambda: token, **_tls(settings))
    try:
        is_ours = client.get_self().id == agent_id
    except FulcrumAuthFailing:
        is_ours = False
    if not is_ours:
        raise TokenNotStored(f"the token in {file} is not one of this agent's: {remedy}")


def _client(settings: Settings, token: str) -> FulcrumAdmin:
    """Return a client with the administrator's token. Print a warning for each insecure setting."""
    for setting, danger in settings.insecure_settings():
        if setting.startswith("FULCRUM_"):
            show_error(f"{setting}: {danger}")
    return FulcrumAdmin(settings.fulcrum_api_url, lambda: token, **_tls(settings))


def _tls(settings: Settings) -> dict[str, Any]:
    """Return the TLS arguments of both FulcrumCore clients."""
    return {"ca_bundle": settings.fulcrum_ca_bundle, "verify_tls": settings.fulcrum_verify_tls}


@contextmanager
def _adding_token_hint() -> Iterator[None]:
    """When FulcrumCore refuses the administrator's token in the block, add the likely cause to the error."""
    try:
        yield
    except FulcrumAuthFailing as error:
        hint = "the token must be an administrator's that has not expired (FulcrumCore's first one expires after a day)"
        raise FulcrumAuthFailing(f"{error}: {hint}", status=error.status) from error


def _read_type(file: Path | None, kind: str) -> dict[str, Any]:
    """Return the service type or agent type (`kind`) from the operator's file, or the built-in type without a file.

    Raises SettingsError if the file is not valid.
    """
    if file is None:
        return load_type(SERVICE_TYPE_FILE if kind == "service" else AGENT_TYPE_FILE)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{file} cannot be read as JSON: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        raise SettingsError(f"{file} is no {kind} type: it must be an object with a name")
    return found
