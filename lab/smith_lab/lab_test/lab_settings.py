"""Reads the settings of a lab (a Proxmox for tests) from the variables LAB_PROXMOX_*, and checks them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from executor.errors import SettingsError
from executor.proxies import format_host_for_url
from executor.settings.settings import Settings
from executor.settings.types import MAX_VMID, MIN_VMID

#: The beginning of the name of each variable.
VARIABLE_PREFIX = "LAB_PROXMOX_"
#: The variables that every lab needs, without VARIABLE_PREFIX.
REQUIRED_VARIABLES = ("HOST", "USER", "TOKEN_ID", "TOKEN_SECRET", "NODE", "TEMPLATE", "STORAGE", "VMID_MIN", "VMID_MAX")
#: Values of LAB_PROXMOX_VALIDATE_CERTS that mean no.
FALSE_TEXTS = ("0", "false", "no", "off")
#: The image name by which the executor's settings refer to LAB_PROXMOX_TEMPLATE and LAB_PROXMOX_OS_TEMPLATE.
IMAGE = "lab"
#: The smallest number of VMIDs for one test run (a run of the lab tests): ten for guests, and one for a VM that marks
#: the VMIDs as reserved for this test run.
MIN_RANGE_SIZE = 11
#: The maximum length of LAB_PROXMOX_NAME_PREFIX. A guest's name has at most 63 characters: the prefix, the test run's
#: token (six hexadecimal digits that identify the test run), a label that the test chooses, and a part of the service
#: id.
MAX_NAME_PREFIX_LENGTH = 20


@dataclass(frozen=True, kw_only=True)
class LabSettings:
    """The settings of a lab. Each member is named as its variable, but in lower case and without LAB_PROXMOX_."""

    host: str
    user: str
    token_id: str
    token_secret: str = field(repr=False)
    node: str
    template: int  #: the VMID of a template on `node`
    storage: str
    vmid_min: int
    vmid_max: int
    port: int = 8006
    ca_bundle: str = ""
    validate_certs: bool = True
    bridge: str = "vmbr0"
    second_node: str = ""  #: the target of migrations; '': the tests of migrations are skipped
    backup_storage: str = ""  #: '': the tests of backups are skipped
    os_template: str = ""  #: the volume of a container template; '': the tests of containers are skipped
    range_size: int = 20  #: the number of VMIDs for one test run
    name_prefix: str = "smith-lab"  #: the beginning of the names of all guests of lab tests

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> LabSettings:
        """Read LAB_PROXMOX_*. Raises SettingsError, which names all missing variables, or the first wrong variable."""
        if missing := missing_required_variables(environ):
            raise SettingsError(f"the lab needs {', '.join(missing)}: set these variables (docs/lab_test.md)")
        values: dict[str, Any] = {}
        for each in fields(cls):
            text = environ.get(VARIABLE_PREFIX + each.name.upper(), "")
            if text:
                values[each.name] = _parse_value(each.name, str(each.type), text)
        settings = cls(**values)
        settings._refuse_invalid_values()
        return settings

    def _refuse_invalid_values(self) -> None:
        if not MIN_VMID <= self.vmid_min <= self.vmid_max <= MAX_VMID:
            raise SettingsError(
                f"{VARIABLE_PREFIX}VMID_MIN must be at least {MIN_VMID} and at most {VARIABLE_PREFIX}VMID_MAX, and "
                f"{VARIABLE_PREFIX}VMID_MAX at most {MAX_VMID}"
            )
        has_valid_characters = self.name_prefix.replace("-", "").isalnum() and self.name_prefix.isascii()
        has_valid_characters = has_valid_characters and self.name_prefix == self.name_prefix.lower()
        if (
            not has_valid_characters
            or len(self.name_prefix) > MAX_NAME_PREFIX_LENGTH
            or self.name_prefix.strip("-") != self.name_prefix
        ):
            text = f"1 to {MAX_NAME_PREFIX_LENGTH} lower-case letters, digits and hyphens"
            raise SettingsError(
                f"{VARIABLE_PREFIX}NAME_PREFIX must be {text}, without a hyphen at its beginning or end"
            )
        if re.search(r"(^|-)[0-9a-f]{6}(-|$)", self.name_prefix):
            raise SettingsError(
                f"no hyphen-separated part of {VARIABLE_PREFIX}NAME_PREFIX may be six hexadecimal digits: "
                "in the name of a guest, six hexadecimal digits identify the test run"
            )

    @property
    def url(self) -> str:
        """The URL of the lab's Proxmox. The host may be an IPv6 address."""
        return f"https://{format_host_for_url(self.host)}:{self.port}"

    def require_enough_vmids_for_one_test_run(self) -> None:
        """Raise SettingsError if LAB_PROXMOX_RANGE_SIZE is too small, or if the lab has fewer VMIDs than one range."""
        if self.range_size < MIN_RANGE_SIZE:
            raise SettingsError(f"{VARIABLE_PREFIX}RANGE_SIZE must be at least {MIN_RANGE_SIZE}")
        if not self.ranges():
            raise SettingsError(
                f"{VARIABLE_PREFIX}VMID_MIN to {VARIABLE_PREFIX}VMID_MAX must contain at least {self.range_size} "
                f"VMIDs: the value of {VARIABLE_PREFIX}RANGE_SIZE"
            )

    def ranges(self) -> list[range]:
        """Divide the lab's VMIDs into ranges, one per test run. VMIDs at the end that fill no range stay unused."""
        count = (self.vmid_max - self.vmid_min + 1) // self.range_size
        starts = [self.vmid_min + number * self.range_size for number in range(count)]
        return [range(start, start + self.range_size) for start in starts]

    def variables(self) -> dict[str, str]:
        """Return the settings as environment variables, which `from_environment` can read in another process."""
        return {VARIABLE_PREFIX + each.name.upper(): _format_value(getattr(self, each.name)) for each in fields(self)}

    def proxmox_variables(self) -> dict[str, str]:
        """Return the executor's settings for the lab's Proxmox, as environment variables."""
        return {
            "PROXMOX_HOST": self.host,
            "PROXMOX_PORT": str(self.port),
            "PROXMOX_USER": self.user,
            "PROXMOX_TOKEN_ID": self.token_id,
            "PROXMOX_TOKEN_SECRET": self.token_secret,
            "PROXMOX_VALIDATE_CERTS": _format_value(self.validate_certs),
            "PROXMOX_CA_BUNDLE": self.ca_bundle,
        }

    def executor_settings(self, **overrides: Any) -> Settings:
        """Return the settings with which an executor works in this lab. `overrides` replaces settings by name."""
        nodes = [name for name in (self.node, self.second_node) if name]
        values: dict[str, Any] = {
            **{name.lower(): value for name, value in self.proxmox_variables().items() if value},
            "proxmox_nodes": ",".join(nodes),
            "proxmox_storage": self.storage,
            "proxmox_bridge": self.bridge,
            "proxmox_templates": f"{IMAGE}={self.template}",
            "proxmox_vmid_min": self.vmid_min,
            "proxmox_vmid_max": self.vmid_max,
            "proxmox_tags": "*",  # a service may set any Proxmox tag
        }
        if self.backup_storage:
            values["proxmox_backup_storage"] = self.backup_storage
        if self.os_template:
            values["proxmox_os_templates"] = f"{IMAGE}={self.os_template}"
        return Settings(**values | overrides)


def is_lab_configured(environ: Mapping[str, str]) -> bool:
    """Return whether LAB_PROXMOX_HOST is set. If not, the lab is a stand-in."""
    return bool(environ.get(f"{VARIABLE_PREFIX}HOST"))


def missing_required_variables(environ: Mapping[str, str]) -> list[str]:
    """Return the names of the required variables that are not set."""
    return [VARIABLE_PREFIX + name for name in REQUIRED_VARIABLES if not environ.get(VARIABLE_PREFIX + name)]


def require_vmids_outside_agent_range(lab: LabSettings, production: Settings) -> None:
    """Raise SettingsError if a VMID of the lab is between PROXMOX_VMID_MIN and PROXMOX_VMID_MAX of `production`."""
    first, last = production.proxmox_vmid_min, production.proxmox_vmid_max
    if lab.vmid_min <= last and first <= lab.vmid_max:
        raise SettingsError(
            f"the lab's VMIDs {lab.vmid_min} to {lab.vmid_max} overlap the VMIDs of production, {first} to {last} "
            f"(PROXMOX_VMID_MIN to PROXMOX_VMID_MAX): change {VARIABLE_PREFIX}VMID_MIN and {VARIABLE_PREFIX}VMID_MAX. "
            "If production uses other VMIDs, change PROXMOX_VMID_MIN and PROXMOX_VMID_MAX"
        )


def _parse_value(name: str, type_name: str, text: str) -> str | int | bool:
    if type_name == "bool":
        return text.lower() not in FALSE_TEXTS
    if type_name != "int":
        return text
    if not (text.isascii() and text.isdecimal()):
        raise SettingsError(f"{VARIABLE_PREFIX}{name.upper()} must be a whole number")
    return int(text)


def _format_value(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
