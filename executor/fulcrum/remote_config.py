"""At the start: the configuration that FulcrumCore holds for the agent is laid over file and environment.

Only with SMITH_REMOTE_CONFIG=true. Its members pass the same checks as the settings that they stand for; one that does
not is a SettingsError, members that we do not know are ignored, and an empty one counts as none. As long as FulcrumCore
does not answer, or its vault does not give the secret, we ask again: a start must never fail because of them.
"""

from __future__ import annotations

import os
import random
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from executor.errors import FulcrumError, SettingsError
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.types import CoreAgent
from executor.fulcrum.vault import REFERENCE_PREFIX
from executor.log import get_logger
from executor.processes.progress import Progress
from executor.redaction import redactor
from executor.settings.problems import problems_in
from executor.settings.settings import Settings, overlay
from executor.settings.types import MIN_VMID

log = get_logger(__name__)

#: What `describe` shows as the origin of these settings.
ORIGIN = "FulcrumCore"
PLACE = "from FulcrumCore's configuration"
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
CA_FILE = "proxmox-ca-from-fulcrumcore.pem"
_IMAGE_NAME = re.compile(r"[^,=\s]{1,100}")


class _Unfit(Exception):
    """A member is not what it must be; the text goes on after its name."""


def settings_in_force(
    settings: Settings,
    fulcrum: FulcrumClient,
    *,
    pause: Callable[[float], None] | None = None,
    on_wait: Callable[[str], None] = lambda _reason: None,
) -> Settings:
    """Return the settings with FulcrumCore's configuration over them; asks until there is an answer.

    `on_wait` is told why each attempt failed. Raises SettingsError naming every member that cannot be used, and every
    variable that is still missing.
    """
    if not settings.smith_remote_config:
        return settings
    waiting = _Waiting(pause or _sleep_and_move, on_wait)
    while True:
        try:
            agent = fulcrum.get_self()
            values = _Reader(settings, fulcrum).values(agent)
        except FulcrumError as error:  # a secret that is not there (404) too: an admin may be changing it just now
            waiting.note(error)
            continue
        return _overlaid(settings, values)


def settings_now(settings: Settings, fulcrum: FulcrumClient) -> Settings:
    """The same at the first attempt. Raises FulcrumError when there is no answer, SettingsError as above."""
    return _overlaid(settings, _Reader(settings, fulcrum).values(fulcrum.get_self()))


def _overlaid(settings: Settings, values: dict[str, Any]) -> Settings:
    # A token from there takes the place of a password from here: the two exclude each other.
    has_token = {"proxmox_token_id", "proxmox_token_secret"} <= values.keys()
    without = frozenset({"proxmox_password"}) if has_token else frozenset()
    try:
        made = overlay(settings, values, ORIGIN, without=without)
    except ValidationError as error:
        raise SettingsError("\n".join(_lines(problems_in(error), values))) from None  # pydantic's would show values
    made.require_proxmox()
    names = sorted(member.name for member in MEMBERS if member.attribute in values)
    log.info("remote_configuration_applied", members=names)
    return made


def _lines(problems: Mapping[str, str], values: Mapping[str, Any]) -> Iterator[str]:
    for name, problem in problems.items():
        member = next((member for member in MEMBERS if member.attribute == name.lower()), None)
        if member is not None and member.attribute in values:
            yield f"{member.name} {PLACE} (it stands for {name}) {problem}"
        else:  # ours, and only wrong beside what came from there
            yield f"{name} {problem}; some settings are {PLACE}: {', '.join(sorted(map(str.upper, values)))}"


class _Waiting:
    """The pauses between attempts, and one log line for each change of what is wrong."""

    def __init__(self, pause: Callable[[float], None], on_wait: Callable[[str], None]) -> None:
        self._pause = pause
        self._on_wait = on_wait
        self._attempts = count()
        self._said: tuple[str, int | None] | None = None

    def note(self, error: FulcrumError) -> None:
        """Wait a little, longer each time."""
        kind = (type(error).__name__, error.status)
        if kind != self._said:
            log.warning("remote_configuration_awaited", reason=str(error))
        self._said = kind
        self._on_wait(str(error))
        grown_s = min(FIRST_PAUSE_S * 2.0 ** min(next(self._attempts), 10), LONGEST_PAUSE_S)
        self._pause(max(grown_s * random.uniform(0.7, 1.3), error.retry_after_s or 0.0))  # noqa: S311 (spreads load)


def _sleep_and_move(seconds: float) -> None:
    """Sleep, and tell the supervisor meanwhile that we are not stuck."""
    progress, until = Progress(), time.monotonic() + seconds
    progress.ready()  # the start goes on without us: FulcrumCore may stay away for a day
    progress.status("waiting for FulcrumCore's configuration")
    while (left_s := until - time.monotonic()) > 0:
        progress.beat()
        time.sleep(min(left_s, 1.0))


# ---------------------------------------------------------------------------------------------------------------
# Members


class _Reader:
    """Turns one answer into values of settings."""

    def __init__(self, settings: Settings, fulcrum: FulcrumClient) -> None:
        self.settings = settings
        self.fulcrum = fulcrum

    def values(self, agent: CoreAgent) -> dict[str, Any]:
        """Return what is set there, by the settings' attributes. Raises SettingsError, FulcrumError."""
        if any(defect.startswith("agent.configuration") for defect in agent.defects):
            raise SettingsError(f"FulcrumCore's configuration cannot be read: {', '.join(agent.defects)}")
        if not agent.configuration:
            log.warning("remote_configuration_empty", agent_id=agent.id)
        found: dict[str, Any] = {}
        problems: list[str] = []
        for member in MEMBERS:
            given = _member_of(agent.configuration, member.name)
            if given in (None, "", [], {}):
                continue
            try:
                found[member.attribute] = member.read(self, given)
            except _Unfit as unfit:
                problems.append(f"{member.name} {PLACE} (it stands for {member.attribute.upper()}) {unfit}")
        if problems:
            raise SettingsError("\n".join(problems))
        return found

    def text(self, given: Any) -> str:
        """Take text as it is."""
        return str(_of_kind(given, str, "a text"))

    def number(self, given: Any) -> Any:
        """Take a number; bounds and wholeness are the setting's."""
        if isinstance(given, bool):
            raise _Unfit("must be a number, not true or false")
        return _of_kind(given, int | float, "a number")

    def switch(self, given: Any) -> bool:
        """Take true or false."""
        return bool(_of_kind(given, bool, "true or false"))

    def names(self, given: Any) -> tuple[str, ...]:
        """Take a list of names."""
        return tuple(self.text(item) for item in _of_kind(given, list, "a list"))

    def secret(self, given: Any) -> str:
        """Fetch a secret from the vault. Raises FulcrumError when the vault does not give it."""
        reference = self.text(given)
        if not reference.startswith(REFERENCE_PREFIX):
            raise _Unfit("is not a vault reference: the agent type must mark it as a secret")
        value = self.fulcrum.get_secret(reference)
        if not isinstance(value, str):
            raise _Unfit("is not a text in the vault")
        redactor.add(value)
        return value

    def certificates(self, given: Any) -> Path:
        """Write PEM text to a file that only we can read."""
        pem = self.text(given)
        try:
            ssl.create_default_context(cadata=pem)
        except (ssl.SSLError, ValueError):
            raise _Unfit("is wrong, it holds no certificates in PEM form") from None
        folder = self.settings.smith_data_dir
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return _write_private(folder / CA_FILE, pem)
        except OSError as error:
            raise _Unfit(f"cannot be written to {folder}: {error.strerror}") from None

    def images(self, given: Any) -> dict[str, int]:
        """Take image names with the VMIDs of their templates."""
        for name, vmid in _of_kind(given, dict, "an object").items():
            if not _IMAGE_NAME.fullmatch(name):
                raise _Unfit("is wrong, the name of an image holds a space, a comma or '='")
            if isinstance(vmid, bool) or not isinstance(vmid, int) or vmid < MIN_VMID:
                raise _Unfit(f"is wrong, {name!r} does not name a VMID")
        return dict(given)


def _of_kind(given: Any, kind: Any, words: str) -> Any:
    if not isinstance(given, kind):
        raise _Unfit(f"must be {words}, not {_KINDS.get(type(given), 'something else')}")
    return given


_KINDS = {str: "a text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}


def _member_of(configuration: Mapping[str, Any], name: str) -> Any:
    """Find `name`, or `outer.inner`. Something else where an object should be holds no members."""
    found: Any = configuration
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _write_private(file: Path, text: str) -> Path:
    """Replace the file as a whole: a run that starts at this moment reads the old one or the new one."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:
        os.fchmod(out.fileno(), 0o600)
        out.write(text)
    return draft.replace(file)


@dataclass(frozen=True)
class Member:
    """One member of FulcrumCore's configuration, and the setting that it stands for."""

    name: str
    attribute: str
    read: Callable[[_Reader, Any], Any]


#: All that is read; the agent type in deploy/ names the same. A test compares the two.
MEMBERS = (
    Member("apiHost", "proxmox_host", _Reader.text),
    Member("apiPort", "proxmox_port", _Reader.number),
    Member("apiUser", "proxmox_user", _Reader.text),
    Member("apiTokenId", "proxmox_token_id", _Reader.text),
    Member("apiTokenSecret", "proxmox_token_secret", _Reader.secret),
    Member("verifyTls", "proxmox_validate_certs", _Reader.switch),
    Member("caBundle", "proxmox_ca_bundle", _Reader.certificates),
    Member("nodes", "proxmox_nodes", _Reader.names),
    Member("storage", "proxmox_storage", _Reader.text),
    Member("bridge", "proxmox_bridge", _Reader.text),
    Member("resourcePool", "proxmox_pool", _Reader.text),
    Member("vmidRange.min", "proxmox_vmid_min", _Reader.number),
    Member("vmidRange.max", "proxmox_vmid_max", _Reader.number),
    Member("images", "proxmox_templates", _Reader.images),
    Member("pollIntervalSeconds", "fulcrum_poll_interval_s", _Reader.number),
    Member("heartbeatIntervalSeconds", "fulcrum_heartbeat_interval_s", _Reader.number),
    Member("metricsIntervalSeconds", "smith_metrics_interval_s", _Reader.number),
    Member("maxConcurrentJobs", "smith_concurrency", _Reader.number),
    Member("jobDeadlineSeconds", "fulcrum_job_timeout_s", _Reader.number),
)
