"""`smith bootstrap`: FulcrumCore made ready for an agent, with an administrator's token."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Self

import typer

from executor.cli.arguments import AsJson
from executor.cli.context import open_settings
from executor.cli.help_text import examples
from executor.cli.output import complain, say, show_json
from executor.cli.tables import show_rows
from executor.errors import FulcrumAuthFailing, SettingsError, SmithError
from executor.fulcrum import bootstrap
from executor.fulcrum.admin import FulcrumAdmin
from executor.fulcrum.bootstrap import Bootstrap, BootstrapRequest, Step
from executor.fulcrum.client import FulcrumClient
from executor.redaction import redactor
from executor.settings.settings import Settings
from executor.settings.sources import read_secret_file

#: Not FULCRUM_…: those are the agent's settings, and the agent is never to have this token.
ADMIN_TOKEN = "CORE_ADMIN_TOKEN"  # noqa: S105  a variable's name
COLUMNS = {"kind": "WHAT", "name": "NAME", "status": "STATUS", "id": "ID", "differences": "DIFFERS IN"}
SHOWN_DIFFERENCES = 3
DEFAULT_TOKEN_DAYS = 3650
DEFAULT_TAGS = ("proxmox",)


class TokenNotKept(SmithError):
    """The agent has a token, but not in the file that was named."""


@examples(
    "smith bootstrap core --agent smith-dc1 --provider 'My cloud' --admin-token-file admin-token --dry-run",
    "smith bootstrap core --agent smith-dc1 --provider 'My cloud' --admin-token-file admin-token \\",
    "    --token-file fulcrum_api_token",
)
def core(  # noqa: PLR0913, PLR0917 (one option each; typer passes them by name)
    agent: Annotated[str, typer.Option("--agent", help="The agent's name.")],
    provider: Annotated[str, typer.Option("--provider", help="The participant that it works for: name or id.")],
    create_provider: Annotated[
        bool, typer.Option("--create-provider", help="Make that participant when there is none of the name.")
    ] = False,
    admin_token_file: Annotated[
        Path | None,
        typer.Option("--admin-token-file", help=f"Where the administrator's token is; without it ${ADMIN_TOKEN}."),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", help="Write the agent's new token to this new file."),
    ] = None,
    show_token: Annotated[bool, typer.Option("--show-token", help="Print the agent's new token.")] = False,
    new_token: Annotated[bool, typer.Option("--new-token", help="Make a token even if the agent has one.")] = False,
    token_days: Annotated[
        int, typer.Option("--token-days", min=1, max=36_500, help="For how long the new token is valid.")
    ] = DEFAULT_TOKEN_DAYS,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="A tag of the agent; may be repeated.")] = None,
    service_type_file: Annotated[
        Path | None, typer.Option("--service-type-file", help="Your own service type; ours without it.")
    ] = None,
    agent_type_file: Annotated[
        Path | None, typer.Option("--agent-type-file", help="Your own agent type; ours without it.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be made, and make nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make in FulcrumCore what an agent needs: service type, agent type, metric types, agent and its token.

    FULCRUM_API_URL says where. The administrator's token comes from a file or the environment and is kept nowhere.

    What is there by its name stays as it is, and what differs is told: a second run makes only what is missing.
    """
    settings = open_settings()
    settings.require_fulcrum_address()
    wanted = BootstrapRequest(
        agent=agent,
        provider=provider,
        may_create_provider=create_provider,
        service_type=_type_of(service_type_file, "service"),
        agent_type=_type_of(agent_type_file, "agent"),
        tags=tuple(tag or DEFAULT_TAGS),
        token_lifetime=timedelta(days=token_days),
        wants_new_token=new_token,
    )
    admin_token = _admin_token(admin_token_file)
    with _explained():
        bootstrap = Bootstrap(_client(settings, admin_token), wanted)
        with _TokenPlace(token_file, is_shown=show_token, is_needed=bootstrap.needs_token) as place:
            steps = _carry_out(bootstrap, place, dry_run=dry_run, is_told=not as_json)
    if as_json:
        found: dict[str, Any] = {
            "dry_run": dry_run,
            "agent_id": bootstrap.agent_id,
            "steps": [asdict(s) for s in steps],
        }
        show_json(found | ({"token": place.value} if show_token else {}))
    else:
        _tell_end(place, dry_run=dry_run)
    if not bootstrap.needs_token and token_file:
        _refuse_other_token(settings, token_file, bootstrap.agent_id)


def _carry_out(bootstrap: Bootstrap, place: _TokenPlace, *, dry_run: bool, is_told: bool) -> list[Step]:
    """Go through all steps. What was done before one that fails is shown all the same."""
    steps: list[Step] = []
    try:
        if not dry_run:
            place.reserve()
        for step in bootstrap.dry_run() if dry_run else bootstrap.create_missing(place.keep):
            steps.append(step)
    finally:
        if is_told and steps:
            show_rows([_shown(step) for step in steps], COLUMNS, nothing="")
    return steps


def _shown(step: Step) -> dict[str, Any]:
    places = step.differences[:SHOWN_DIFFERENCES]
    more = len(step.differences) - len(places)
    told = [*places, f"and {more} more (--json lists all)"] if more else places
    status = "would be made" if step.status == "missing" else step.status.value
    return {"kind": step.kind, "name": step.name, "status": status, "id": step.id, "differences": ", ".join(told)}


def _tell_end(place: _TokenPlace, *, dry_run: bool) -> None:
    if dry_run:
        say("nothing was made: this was a dry run")
    elif place.value and place.file:
        say(f"the agent's token is in {place.file}; FulcrumCore does not tell it again")
    if place.value and place.is_shown:
        say(place.value)


# --- tokens -----------------------------------------------------------------------------------------------------


class _TokenPlace:
    """Where a new token of the agent goes: a file of its owner's alone, made before the token is, or the terminal."""

    def __init__(self, file: Path | None, *, is_shown: bool, is_needed: bool) -> None:
        self.file = file
        self.is_shown = is_shown
        self.value: str | None = None
        self._is_needed = is_needed
        self._handle: int | None = None

    def __enter__(self) -> Self:
        """Refuse before anything is made what could not be kept afterwards."""
        if self._is_needed and self.file and os.path.lexists(self.file):
            raise typer.BadParameter(f"{self.file} exists already: a new token goes into a new file")
        return self

    def reserve(self) -> None:
        """Make the file, so that the token which FulcrumCore tells only once can be written. Raises TokenNotKept."""
        if not self._is_needed:
            return
        if not self.file and not self.is_shown:
            raise typer.BadParameter("a token will be made: say --token-file FILE, or --show-token")
        if self.file:
            try:
                self._handle = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            except OSError as error:
                raise TokenNotKept(f"{self.file} cannot be written: {error.strerror}; nothing was made") from None

    def keep(self, value: str) -> None:
        """Write the token to the disk."""
        self.value = value
        if not self.is_shown:
            redactor.add(value)
        if self._handle is not None:
            os.write(self._handle, f"{value}\n".encode())
            os.fsync(self._handle)

    def __exit__(self, *_: object) -> None:
        """Leave no empty file behind."""
        if self._handle is not None:
            os.close(self._handle)
            if self.file and self.value is None:
                self.file.unlink(missing_ok=True)


def _admin_token(file: Path | None) -> str:
    """Return the administrator's token; it is masked in everything from now on. Raises SettingsError."""
    token = read_secret_file(file) if file else os.environ.get(ADMIN_TOKEN, "").strip()
    if not token:
        raise SettingsError(f"an administrator's token is missing: say --admin-token-file FILE, or set {ADMIN_TOKEN}")
    redactor.add(token)
    return token


def _refuse_other_token(settings: Settings, file: Path, agent_id: str | None) -> None:
    """Raise TokenNotKept unless the file holds a token of this agent, which no run made now."""
    remedy = "the agent has a token, which FulcrumCore does not tell again: --new-token makes another"
    if not file.exists():
        raise TokenNotKept(f"{file} was not written: {remedy}")
    token = read_secret_file(file)
    redactor.add(token)
    client = FulcrumClient(settings.fulcrum_api_url, lambda: token, **_tls(settings))
    try:
        belongs = client.get_self().id == agent_id
    except FulcrumAuthFailing:
        belongs = False
    if not belongs:
        raise TokenNotKept(f"the token in {file} is not one of this agent's: {remedy}")


# --- FulcrumCore ------------------------------------------------------------------------------------------------


def _client(settings: Settings, token: str) -> FulcrumAdmin:
    for setting, danger in settings.insecurities():
        if setting.startswith("FULCRUM_"):
            complain(f"{setting}: {danger}")
    return FulcrumAdmin(settings.fulcrum_api_url, lambda: token, **_tls(settings))


def _tls(settings: Settings) -> dict[str, Any]:
    return {"ca_bundle": settings.fulcrum_ca_bundle, "verify_tls": settings.fulcrum_verify_tls}


@contextmanager
def _explained() -> Iterator[None]:
    """Say what a refused token may mean here. Nobody waits: an administrator is there to read it."""
    try:
        yield
    except FulcrumAuthFailing as error:
        hint = "the token must be an administrator's that has not expired (FulcrumCore's first one lives for a day)"
        raise FulcrumAuthFailing(f"{error}: {hint}", status=error.status) from error


def _type_of(file: Path | None, kind: str) -> dict[str, Any]:
    """Return a type's JSON: the operator's own or the one that ships. Raises SettingsError."""
    if file is None:
        return bootstrap.load_type(bootstrap.SERVICE_TYPE_FILE if kind == "service" else bootstrap.AGENT_TYPE_FILE)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{file} cannot be read as JSON: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        raise SettingsError(f"{file} is no {kind} type: it must be an object with a name")
    return found
