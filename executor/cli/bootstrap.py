"""`smith bootstrap core`: creates an agent, its token, a service type, an agent type and metric types in FulcrumCore.

A metric type names a value that the agent measures, such as vm.cpu.usage.
"""

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
from executor.errors import FulcrumAuthError, SettingsError
from executor.fulcrum.admin import FulcrumAdmin, FulcrumToken
from executor.fulcrum.bootstrap import (
    AGENT_TYPE_FILE,
    VM_SERVICE_TYPE_FILE,
    Bootstrap,
    BootstrapRequest,
    BootstrapStep,
    read_type_file,
)
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.offered_type import restrict_service_type
from executor.redaction import redactor
from executor.settings.settings import Settings
from executor.settings.sources import read_secret_file

#: The environment variable with the administrator's token. Its name does not begin with FULCRUM_, because variables
#: with this prefix are the agent's settings, and the agent must not have this token.
ADMIN_TOKEN_VARIABLE = "CORE_ADMIN_TOKEN"  # noqa: S105 (the name of a variable, not a secret)
COLUMNS = {"kind": "WHAT", "name": "NAME", "status": "STATUS", "id": "ID", "differences": "DIFFERS IN"}
MAX_SHOWN_DIFFERENCES = 3
DEFAULT_TOKEN_LIFETIME_DAYS = 3650
DEFAULT_TAGS = ("proxmox",)


@examples(
    "smith bootstrap core --agent smith-dc1 --provider 'My cloud' --admin-token-file admin-token --dry-run",
    "smith bootstrap core --agent smith-dc1 --provider 'My cloud' --admin-token-file admin-token \\",
    "    --token-file fulcrum_api_token",
)
def bootstrap_core(  # noqa: PLR0913, PLR0917 (each parameter is an option; typer passes all by name)
    agent: Annotated[str, typer.Option("--agent", help="The agent's name.")],
    provider: Annotated[
        str, typer.Option("--provider", help="Name or id of the agent's provider (a participant in FulcrumCore).")
    ],
    create_provider: Annotated[
        bool, typer.Option("--create-provider", help="Create the participant if it does not exist.")
    ] = False,
    admin_token_file: Annotated[
        Path | None,
        typer.Option(
            "--admin-token-file",
            help=f"File with the administrator's token; default: the token in ${ADMIN_TOKEN_VARIABLE}.",
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", help="Write the agent's new token to this file, which must not exist."),
    ] = None,
    show_token: Annotated[bool, typer.Option("--show-token", help="Print the agent's new token.")] = False,
    new_token: Annotated[bool, typer.Option("--new-token", help="Create a token even if the agent has one.")] = False,
    remove_old_tokens: Annotated[
        bool,
        typer.Option(
            "--remove-old-tokens",
            help="With --new-token: delete the agent's old tokens in FulcrumCore, which existed before this command.",
        ),
    ] = False,
    token_days: Annotated[
        int, typer.Option("--token-days", min=1, max=36_500, help="Days until the new token expires.")
    ] = DEFAULT_TOKEN_LIFETIME_DAYS,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="A tag of the agent; may be repeated.")] = None,
    service_type_file: Annotated[
        Path | None,
        typer.Option("--service-type-file", help="File with a service type; default: the built-in type."),
    ] = None,
    agent_type_file: Annotated[
        Path | None,
        typer.Option("--agent-type-file", help="File with an agent type; default: the built-in type."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be created, and create nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Create an agent, its token, a service type, an agent type and metric types in FulcrumCore.

    A metric type names a value that the agent measures, such as vm.cpu.usage.

    FULCRUM_API_URL is FulcrumCore's address. The administrator's token is read from a file or from the environment, and
    is not stored.

    An existing object with the same name is not changed; the command shows how it differs. There is one exception: the
    service type is added to an existing agent type that lacks it. A repeated call creates only the missing objects.
    """
    if remove_old_tokens and not new_token:
        raise typer.BadParameter("--remove-old-tokens needs --new-token")
    settings = open_settings()
    settings.require_fulcrum_url()
    request = BootstrapRequest(
        agent_name=agent,
        provider_name_or_id=provider,
        may_create_provider=create_provider,
        service_type=_read_service_type(service_type_file, settings),
        agent_type=_read_type(agent_type_file, "agent"),
        tags=tuple(tag or DEFAULT_TAGS),
        token_lifetime=timedelta(days=token_days),
        wants_new_token=new_token,
    )
    admin_token = _read_admin_token(admin_token_file)
    with adding_remedy_if_admin_token_refused():
        bootstrap = Bootstrap(create_admin_client(settings, admin_token), request)
        with TokenDestination(
            token_file, is_token_printed=show_token, will_create_token=bootstrap.must_create_token
        ) as destination:
            steps = _execute_steps(bootstrap, destination, dry_run=dry_run, show_table=not as_json)
        if remove_old_tokens and not dry_run:
            # The earlier tokens are the agent's old tokens. The output of --json calls them `other_tokens`.
            bootstrap.remove_earlier_tokens()
    if as_json:
        _show_json(bootstrap, destination, steps, dry_run=dry_run, removes_old_tokens=remove_old_tokens)
    else:
        _show_token(destination, dry_run=dry_run)
        if bootstrap.must_create_token and bootstrap.earlier_tokens:
            show_text(_old_tokens_text(bootstrap.earlier_tokens, dry_run=dry_run, removes_old_tokens=remove_old_tokens))
    if not bootstrap.must_create_token and token_file:
        _require_token_of_agent(settings, token_file, bootstrap.agent_id)


def _execute_steps(
    bootstrap: Bootstrap, destination: TokenDestination, *, dry_run: bool, show_table: bool
) -> list[BootstrapStep]:
    """Execute all steps, show them, and return them. If a step fails, the completed steps are still shown.

    With `dry_run`, a step only compares the object in FulcrumCore with the wanted object, and creates nothing.
    """
    steps: list[BootstrapStep] = []
    try:
        if not dry_run:
            # If a new token cannot be stored, this call fails before FulcrumCore creates the token.
            destination.create_empty_file()
        # Each iteration executes one step. If a step fails, `steps` has the completed steps, which are then shown.
        step_iterator = bootstrap.dry_run() if dry_run else bootstrap.create_missing(destination.store_token)
        for step in step_iterator:
            steps.append(step)
    finally:
        if show_table and steps:
            show_rows([_table_row(step) for step in steps], COLUMNS, if_empty="")
    return steps


def _table_row(step: BootstrapStep) -> dict[str, Any]:
    shown_differences = list(step.differences[:MAX_SHOWN_DIFFERENCES])
    omitted_count = len(step.differences) - len(shown_differences)
    if omitted_count > 0:
        shown_differences.append(f"and {omitted_count} more (--json lists all)")
    # A step has the status "missing" only with --dry-run.
    status = {"missing": "would be created"}.get(step.status.value, step.status.value)
    return {
        "kind": step.kind,
        "name": step.name,
        "status": status,
        "id": step.id,
        "differences": ", ".join(shown_differences),
    }


def _old_tokens_text(tokens: list[FulcrumToken], *, dry_run: bool, removes_old_tokens: bool) -> str:
    """Return a text that says whether `tokens` are valid, deleted or would be deleted.

    `tokens` are the old tokens: those that the agent had before this command.
    """
    token_texts = ", ".join(f"{token.id} (until {token.expire_at:%Y-%m-%d})" for token in tokens)
    if removes_old_tokens:
        return f"{'would be deleted' if dry_run else 'deleted'}: the agent's old tokens: {token_texts}"
    return f"still valid: the agent's old tokens: {token_texts}; --remove-old-tokens deletes them"


def _show_json(
    bootstrap: Bootstrap,
    destination: TokenDestination,
    steps: list[BootstrapStep],
    *,
    dry_run: bool,
    removes_old_tokens: bool,
) -> None:
    document: dict[str, Any] = {
        "dry_run": dry_run,
        "agent_id": bootstrap.agent_id,
        "steps": [asdict(step) for step in steps],
        "other_tokens": [{"id": token.id, "expires_at": token.expire_at} for token in bootstrap.earlier_tokens],
        "other_tokens_deleted": removes_old_tokens and not dry_run,
    }
    if destination.is_token_printed:
        document["token"] = destination.token
    show_json(document)


def _show_token(destination: TokenDestination, *, dry_run: bool) -> None:
    if dry_run:
        show_text("nothing was created: this was a dry run")
    elif destination.token and destination.file:
        show_text(f"the agent's token is in {destination.file}; FulcrumCore does not show it again")
    if destination.token and destination.is_token_printed:
        show_text(destination.token)


def _read_admin_token(file: Path | None) -> str:
    """Return the administrator's token from the file or the environment, and register it with the redactor.

    Raises SettingsError if there is no token.
    """
    token = read_secret_file(file) if file else os.environ.get(ADMIN_TOKEN_VARIABLE, "").strip()
    if not token:
        raise SettingsError(
            f"an administrator's token is missing: use --admin-token-file FILE, or set {ADMIN_TOKEN_VARIABLE}"
        )
    redactor.add(token)
    return token


def _require_token_of_agent(settings: Settings, file: Path, agent_id: str | None) -> None:
    """Raise TokenNotStored unless the file contains a token that FulcrumCore accepts for this agent.

    Called when --token-file is set but this command has created no token, because the agent has one already.
    """
    remedy = "the agent has a token already, which FulcrumCore does not show again: --new-token creates another token"
    if not file.exists():
        raise TokenNotStored(f"{file} was not written: {remedy}")
    token = read_secret_file(file)
    redactor.add(token)
    if not is_token_of_agent(settings, token, agent_id):
        raise TokenNotStored(f"the token in {file} is not a token of this agent: {remedy}")


def is_token_of_agent(settings: Settings, token: str, agent_id: str | None) -> bool:
    """Return whether FulcrumCore accepts the token for this agent. `agent_id` None: the agent does not exist yet."""
    client = FulcrumClient(settings.fulcrum_api_url, lambda: token, **_tls_arguments(settings))
    try:
        return client.get_own_agent().id == agent_id
    except FulcrumAuthError:
        return False


def create_admin_client(settings: Settings, token: str) -> FulcrumAdmin:
    """Return a client with the administrator's token. Print a warning for each insecure setting."""
    for setting, danger in settings.insecure_settings():
        if setting.startswith("FULCRUM_"):
            show_error(f"{setting}: {danger}")
    return FulcrumAdmin(settings.fulcrum_api_url, lambda: token, **_tls_arguments(settings))


def _tls_arguments(settings: Settings) -> dict[str, Any]:
    """Return the TLS arguments of FulcrumClient and FulcrumAdmin."""
    return {"ca_bundle": settings.fulcrum_ca_bundle, "verify_tls": settings.fulcrum_verify_tls}


@contextmanager
def adding_remedy_if_admin_token_refused() -> Iterator[None]:
    """If FulcrumCore refuses the administrator's token in the `with` block, add the remedy to the error."""
    try:
        yield
    except FulcrumAuthError as error:
        hint = (
            "use an administrator's token that has not expired "
            "(FulcrumCore creates one at each of its starts, valid for one day)"
        )
        raise FulcrumAuthError(f"{error}: {hint}", status=error.status) from error


def _read_service_type(file: Path | None, settings: Settings) -> dict[str, Any]:
    """Return the service type in the operator's file.

    If `file` is None, return the built-in service type, which `restrict_service_type` limits to the templates and
    bridges that the settings allow.
    """
    service_type = _read_type(file, "service")
    return service_type if file else restrict_service_type(service_type, settings)


def _read_type(file: Path | None, kind: str) -> dict[str, Any]:
    """Return the type in the operator's file, or the built-in type if `file` is None. `kind` is service or agent.

    Raises SettingsError if the file is not valid.
    """
    if file is None:
        return read_type_file(VM_SERVICE_TYPE_FILE if kind == "service" else AGENT_TYPE_FILE)
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or error
        raise SettingsError(f"{file} cannot be read as JSON: {cause}") from None
    if not isinstance(document, dict) or not isinstance(document.get("name"), str):
        raise SettingsError(f"{file} is no {kind} type: a type is a JSON object with the member `name`")
    return document
