"""Turns the members of the agent's configuration in FulcrumCore into values of settings."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from executor.errors import SettingsError
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.types import VAULT_PREFIX, CoreAgent
from executor.log import get_logger
from executor.redaction import redactor
from executor.settings.settings import Settings
from executor.settings.types import MIN_VMID

log = get_logger(__name__)

#: Names the origin of a value, in the text of a problem.
FROM_FULCRUMCORE = "from FulcrumCore's configuration"
#: Name of the file, in SMITH_DATA_DIR, to which the CA certificates are written.
CA_FILE = "proxmox-ca-from-fulcrumcore.pem"
_IMAGE_NAME = re.compile(r"[^,=\s]{1,100}")


class _InvalidMember(Exception):
    """A member has a wrong value. The exception's text continues a sentence that starts with the member's name."""


class MemberReader:
    """Reads the values of settings from the agent's configuration in FulcrumCore.

    Each method after `values` reads one kind of member. It raises _InvalidMember if the value is of another kind.
    """

    def __init__(self, settings: Settings, fulcrum: FulcrumClient) -> None:
        self.settings = settings
        self.fulcrum = fulcrum

    def values(self, agent: CoreAgent) -> dict[str, Any]:
        """Return the configured values. The keys are attributes of Settings. Raises SettingsError, FulcrumError."""
        if any(defect.startswith("agent.configuration") for defect in agent.defects):
            raise SettingsError(f"FulcrumCore's configuration cannot be read: {', '.join(agent.defects)}")
        if not agent.configuration:
            log.warning("remote_configuration_empty", agent_id=agent.id)
        values: dict[str, Any] = {}
        problems: list[str] = []
        for member in MEMBERS:
            value = _look_up(agent.configuration, member.name)
            if value in (None, "", [], {}):
                continue
            try:
                values[member.attribute] = member.read(self, value)
            except _InvalidMember as problem:
                problems.append(
                    f"{member.name} {FROM_FULCRUMCORE} (it stands for {member.attribute.upper()}) {problem}"
                )
        if problems:
            raise SettingsError("\n".join(problems))
        return values

    def text(self, value: Any) -> str:
        """Return the value, which must be a text."""
        return str(_of_type(value, str, "a text"))

    def number(self, value: Any) -> Any:
        """Return the value, which must be a number.

        Settings later checks the bounds of the number, and whether it must be a whole number.
        """
        if isinstance(value, bool):
            raise _InvalidMember("must be a number, not true or false")
        return _of_type(value, int | float, "a number")

    def boolean(self, value: Any) -> bool:
        """Return the value, which must be true or false."""
        return bool(_of_type(value, bool, "true or false"))

    def names(self, value: Any) -> tuple[str, ...]:
        """Return the value, which must be a list of names."""
        return tuple(self.text(item) for item in _of_type(value, list, "a list"))

    def secret(self, value: Any) -> str:
        """Return the secret to which the value, a vault reference, refers. Raises FulcrumError if there is none."""
        reference = self.text(value)
        if not reference.startswith(VAULT_PREFIX):
            raise _InvalidMember("is not a vault reference: the agent type must mark it as a secret")
        secret = self.fulcrum.get_secret(reference)
        if not isinstance(secret, str):
            raise _InvalidMember("is not a text in the vault")
        redactor.add(secret)
        return secret

    def certificates(self, value: Any) -> Path:
        """Write the value, which must be certificates in PEM form, to a file, and return the path of the file.

        Only the agent's user can read the file.
        """
        pem = self.text(value)
        try:
            ssl.create_default_context(cadata=pem)
        except (ssl.SSLError, ValueError):
            raise _InvalidMember("is wrong, it contains no certificates in PEM form") from None
        folder = self.settings.smith_data_dir
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return _write_private(folder / CA_FILE, pem)
        except OSError as error:
            raise _InvalidMember(f"cannot be written to {folder}: {error.strerror}") from None

    def images(self, value: Any) -> dict[str, int]:
        """Return the value, which must be an object with names of images as keys and VMIDs of templates as values."""
        for name, vmid in _of_type(value, dict, "an object").items():
            if not _IMAGE_NAME.fullmatch(name):
                raise _InvalidMember("is wrong, the name of an image contains a space, a comma or '='")
            if isinstance(vmid, bool) or not isinstance(vmid, int) or vmid < MIN_VMID:
                raise _InvalidMember(f"is wrong, {name!r} has a value that is not a VMID")
        return dict(value)


def _of_type(value: Any, expected: Any, description: str) -> Any:
    """Return the value. Raises _InvalidMember if the value is not of the expected type; `description` names it."""
    if not isinstance(value, expected):
        raise _InvalidMember(f"must be {description}, not {_TYPE_NAMES.get(type(value), 'something else')}")
    return value


_TYPE_NAMES = {
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}


def _look_up(configuration: Mapping[str, Any], name: str) -> Any:
    """Return the member with this name; None if it is missing.

    The name `outer.inner` means the member `inner` of the object `outer`.
    """
    value: Any = configuration
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _write_private(file: Path, text: str) -> Path:
    """Replace a file atomically and return its path. A run that starts meanwhile reads the old or the new text."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:
        os.fchmod(out.fileno(), 0o600)
        out.write(text)
    return draft.replace(file)


@dataclass(frozen=True)
class Member:
    """One member of the configuration in FulcrumCore, and the setting that it stands for."""

    name: str
    attribute: str  #: attribute of Settings
    read: Callable[[MemberReader, Any], Any]  #: checks the member's value and returns the setting's value


#: Every member that the agent reads. The agent type in deploy/ declares the same members. A test compares both lists.
MEMBERS = (
    Member("apiHost", "proxmox_host", MemberReader.text),
    Member("apiPort", "proxmox_port", MemberReader.number),
    Member("apiUser", "proxmox_user", MemberReader.text),
    Member("apiTokenId", "proxmox_token_id", MemberReader.text),
    Member("apiTokenSecret", "proxmox_token_secret", MemberReader.secret),
    Member("verifyTls", "proxmox_validate_certs", MemberReader.boolean),
    Member("caBundle", "proxmox_ca_bundle", MemberReader.certificates),
    Member("nodes", "proxmox_nodes", MemberReader.names),
    Member("storage", "proxmox_storage", MemberReader.text),
    Member("bridge", "proxmox_bridge", MemberReader.text),
    Member("resourcePool", "proxmox_pool", MemberReader.text),
    Member("vmidRange.min", "proxmox_vmid_min", MemberReader.number),
    Member("vmidRange.max", "proxmox_vmid_max", MemberReader.number),
    Member("images", "proxmox_templates", MemberReader.images),
    Member("pollIntervalSeconds", "fulcrum_poll_interval_s", MemberReader.number),
    Member("heartbeatIntervalSeconds", "fulcrum_heartbeat_interval_s", MemberReader.number),
    Member("metricsIntervalSeconds", "smith_metrics_interval_s", MemberReader.number),
    Member("maxConcurrentJobs", "smith_concurrency", MemberReader.number),
    Member("jobDeadlineSeconds", "fulcrum_job_timeout_s", MemberReader.number),
)
