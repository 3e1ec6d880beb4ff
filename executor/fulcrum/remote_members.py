"""Converts the JSON members of the agent's configuration in FulcrumCore to values of settings."""

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
from executor.fulcrum.types import VAULT_PREFIX, FulcrumAgent
from executor.log import get_logger
from executor.redaction import redactor
from executor.settings.settings import Settings
from executor.settings.types import MIN_VMID

log = get_logger(__name__)

#: Part of an error text: says that a setting's value comes from the agent's configuration in FulcrumCore.
FROM_FULCRUM_CONFIGURATION = "from FulcrumCore's configuration"
#: The name of the file in SMITH_DATA_DIR to which the CA certificates are written.
CA_FILE_NAME = "proxmox-ca-from-fulcrumcore.pem"
#: Matches the name of an image: 1 to 100 characters without commas, equals signs and white space.
_IMAGE_NAME = re.compile(r"[^,=\s]{1,100}")


class _InvalidMember(Exception):
    """A member has an invalid value. The exception's text completes a sentence that starts with the member's name."""


class MemberReader:
    """Reads the values of settings from the agent's configuration in FulcrumCore.

    Each public method except `read_values` converts the value of one member to the value of its setting, and raises
    _InvalidMember if the value is invalid.
    """

    def __init__(self, settings: Settings, fulcrum: FulcrumClient) -> None:
        self.settings = settings
        self.fulcrum = fulcrum

    def read_values(self, agent: FulcrumAgent) -> dict[str, Any]:
        """Return the configured values. The keys are attributes of Settings. Raises SettingsError and FulcrumError.

        `agent` is FulcrumCore's JSON object of the agent. `agent.defects` lists its invalid members, each with the type
        of pydantic's error, such as `agent.configuration: dict_type` (the configuration is not a JSON object).
        """
        if any(defect.startswith("agent.configuration") for defect in agent.defects):
            raise SettingsError(
                f"the configuration of the agent in FulcrumCore cannot be read: {', '.join(agent.defects)}"
            )
        if not agent.configuration:
            log.warning("remote_configuration_empty", agent_id=agent.id)
        values: dict[str, Any] = {}
        problems: list[str] = []
        for member in CONFIGURATION_MEMBERS:
            value = _find_member_value(agent.configuration, member.name)
            if value in (None, "", [], {}):
                continue
            try:
                values[member.settings_attribute] = member.read(self, value)
            except _InvalidMember as problem:
                setting_name = member.settings_attribute.upper()
                problems.append(f"{member.name} {FROM_FULCRUM_CONFIGURATION} (the setting {setting_name}) {problem}")
        if problems:
            raise SettingsError("\n".join(problems))
        return values

    def read_text(self, value: Any) -> str:
        """Return the value, which must be a text."""
        return str(_require_type(value, str, "a text"))

    def read_number(self, value: Any) -> Any:
        """Return the value, which must be a number.

        The class Settings later checks the bounds of the number, and whether it is whole if the setting requires this.
        """
        if isinstance(value, bool):
            raise _InvalidMember("must be a number, not true or false")
        return _require_type(value, int | float, "a number")

    def read_boolean(self, value: Any) -> bool:
        """Return the value, which must be true or false."""
        return bool(_require_type(value, bool, "true or false"))

    def read_names(self, value: Any) -> tuple[str, ...]:
        """Return the value, which must be a list of names."""
        return tuple(self.read_text(item) for item in _require_type(value, list, "a list"))

    def fetch_secret(self, value: Any) -> str:
        """Read the secret from FulcrumCore's vault. The value must be a reference to the vault. Raises FulcrumError."""
        reference = self.read_text(value)
        if not reference.startswith(VAULT_PREFIX):
            raise _InvalidMember(
                "is not a vault reference: the agent type in FulcrumCore must mark this member as a secret"
            )
        secret = self.fulcrum.get_secret(reference)
        if not isinstance(secret, str):
            raise _InvalidMember("refers to a secret that is not a text: store the secret as a text in FulcrumCore")
        redactor.add(secret)
        return secret

    def write_certificates(self, value: Any) -> Path:
        """Write the value to a file, and return the path of the file. The value must be certificates in PEM form.

        Only the operating system's user that runs the agent can read the file.
        """
        pem = self.read_text(value)
        try:
            ssl.create_default_context(cadata=pem)
        except (ssl.SSLError, ValueError):
            raise _InvalidMember("contains no certificates in PEM form") from None
        folder = self.settings.smith_data_dir
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return _replace_private_file(folder / CA_FILE_NAME, pem)
        except OSError as error:
            raise _InvalidMember(f"cannot be written to {folder}: {error.strerror}") from None

    def read_images(self, value: Any) -> dict[str, int]:
        """Return the VMID of the VM template for each image name. Services choose a VM template by its image name.

        The value of the member must be a JSON object with image names and VMIDs, such as `{"debian-12": 9000}`.
        """
        for name, vmid in _require_type(value, dict, "an object").items():
            if not _IMAGE_NAME.fullmatch(name):
                raise _InvalidMember(
                    f"has the image name {name!r}: 1 to 100 characters are allowed, without spaces, commas and '='"
                )
            if isinstance(vmid, bool) or not isinstance(vmid, int) or vmid < MIN_VMID:
                raise _InvalidMember(
                    f"has no VMID for the image {name!r}: a whole number of at least {MIN_VMID} is required"
                )
        return dict(value)


def _require_type(value: Any, expected_type: Any, description: str) -> Any:
    """Return the value. Raises _InvalidMember if it is not of the expected type, which `description` names."""
    if not isinstance(value, expected_type):
        actual_type = _TYPE_NAMES.get(type(value), "something else")
        raise _InvalidMember(f"must be {description}, not {actual_type}")
    return value


#: The names of types in error texts.
_TYPE_NAMES = {
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}


def _find_member_value(configuration: Mapping[str, Any], name: str) -> Any:
    """Return the value of the member with this name; None if the member is missing.

    The name `outer.inner` means the member `inner` of the object `outer`.
    """
    value: Any = configuration
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _replace_private_file(file: Path, text: str) -> Path:
    """Replace a file atomically and return its path. A run that starts meanwhile reads the old or the new text.

    Only the operating system's user that runs the agent can read the file.
    """
    new_file = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(new_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        os.fchmod(stream.fileno(), 0o600)  # os.open sets no permissions if the file exists
        stream.write(text)
    return new_file.replace(file)


@dataclass(frozen=True)
class ConfigurationMember:
    """One member of the configuration in FulcrumCore, and the setting that gets its value."""

    name: str
    settings_attribute: str  #: the attribute of Settings that holds the setting
    read: Callable[[MemberReader, Any], Any]  #: checks the member's value and returns the setting's value


#: Every member that the agent reads. The agent type's definition, `deploy/agent-type-proxmox.json`, declares the same
#: members.
CONFIGURATION_MEMBERS = (
    ConfigurationMember("apiHost", "proxmox_host", MemberReader.read_text),
    ConfigurationMember("apiPort", "proxmox_port", MemberReader.read_number),
    ConfigurationMember("apiUser", "proxmox_user", MemberReader.read_text),
    ConfigurationMember("apiTokenId", "proxmox_token_id", MemberReader.read_text),
    ConfigurationMember("apiTokenSecret", "proxmox_token_secret", MemberReader.fetch_secret),
    ConfigurationMember("verifyTls", "proxmox_validate_certs", MemberReader.read_boolean),
    ConfigurationMember("caBundle", "proxmox_ca_bundle", MemberReader.write_certificates),
    ConfigurationMember("nodes", "proxmox_nodes", MemberReader.read_names),
    ConfigurationMember("storage", "proxmox_storage", MemberReader.read_text),
    ConfigurationMember("bridge", "proxmox_bridge", MemberReader.read_text),
    ConfigurationMember("resourcePool", "proxmox_pool", MemberReader.read_text),
    ConfigurationMember("vmidRange.min", "proxmox_vmid_min", MemberReader.read_number),
    ConfigurationMember("vmidRange.max", "proxmox_vmid_max", MemberReader.read_number),
    ConfigurationMember("images", "proxmox_templates", MemberReader.read_images),
    ConfigurationMember("pollIntervalSeconds", "fulcrum_poll_interval_s", MemberReader.read_number),
    ConfigurationMember("heartbeatIntervalSeconds", "fulcrum_heartbeat_interval_s", MemberReader.read_number),
    ConfigurationMember("metricsIntervalSeconds", "smith_metrics_interval_s", MemberReader.read_number),
    ConfigurationMember("maxConcurrentJobs", "smith_concurrency", MemberReader.read_number),
    ConfigurationMember("jobDeadlineSeconds", "fulcrum_job_timeout_s", MemberReader.read_number),
)
