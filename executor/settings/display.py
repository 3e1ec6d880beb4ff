"""Formats the settings for `smith config show`, docs/settings.md and an example `.env` file. Masks secrets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from executor.redaction import MASK
from executor.settings.agent import AgentSettings
from executor.settings.declare import Area, extra_of
from executor.settings.deletion import DeletionSettings
from executor.settings.files import FileSettings
from executor.settings.fulcrum import FulcrumSettings
from executor.settings.masking import without_passwords
from executor.settings.monitoring import MonitoringSettings
from executor.settings.new_vms import NewVmSettings
from executor.settings.proxmox import ProxmoxSettings
from executor.settings.runs import RunSettings
from executor.settings.settings import FIELDS, SECRETS, Settings

#: The sections of docs/settings.md, each with the class that declares its settings.
SECTIONS: dict[str, type[Area]] = {
    "FulcrumCore": FulcrumSettings,
    "Proxmox VE": ProxmoxSettings,
    "New VMs": NewVmSettings,
    "Database and folders": FileSettings,
    "Jobs and playbook runs": RunSettings,
    "Deletion": DeletionSettings,
    "Agent": AgentSettings,
    "HTTP server and logs": MonitoringSettings,
}
#: The variables that the example file sets. The file contains all other variables as comments.
_UNCOMMENTED = (
    "FULCRUM_API_URL",
    "FULCRUM_API_TOKEN",
    "PROXMOX_HOST",
    "PROXMOX_USER",
    "PROXMOX_TOKEN_ID",
    "PROXMOX_TOKEN_SECRET",
)


@dataclass(frozen=True, kw_only=True)
class SettingRow:
    """One setting, as it may be shown: secrets are masked."""

    name: str
    value: str
    origin: str  #: see `Settings.origin_of`
    unit: str
    default: str
    description: str


def describe(settings: Settings) -> list[SettingRow]:
    """Return every setting with its value and the origin of this value."""
    return [
        SettingRow(
            name=name,
            value=_shown(name, getattr(settings, name.lower())),
            origin=settings.origin_of(name),
            unit=extra_of(field)["unit"],
            default=_default_text(name, field),
            description=field.description or "",
        )
        for name, field in FIELDS.items()
    ]


def settings_table_markdown() -> str:
    """Return the tables of docs/settings.md in Markdown, one table per section."""
    parts: list[str] = []
    for title, area in SECTIONS.items():
        parts += [f"## {title}", "", "| variable | default | unit | allowed | meaning |", "|---|---|---|---|---|"]
        parts += [_table_row(name.upper(), field) for name, field in area.model_fields.items()]
        parts.append("")
    return "\n".join(parts)


def example_env() -> str:
    """Return an example `.env` file. It sets the required settings, and contains every other setting as a comment."""
    parts = []
    for name, field in FIELDS.items():
        sign = "" if name in _UNCOMMENTED else "#"
        unit = f" [{extra_of(field)['unit']}]" if extra_of(field)["unit"] else ""
        parts.append(f"# {field.description}{unit}\n{sign}{name}={extra_of(field)['example']}\n")
    return "\n".join(parts)


def _table_row(name: str, field: FieldInfo) -> str:
    kind = " *(secret)*" if name in SECRETS else ""
    cells = (f"`{name}`{kind}", _default_text(name, field), extra_of(field)["unit"], _bounds(field), field.description)
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _bounds(field: FieldInfo) -> str:
    lowest = next((str(rule.ge) for rule in field.metadata if hasattr(rule, "ge")), "")
    highest = next((str(rule.le) for rule in field.metadata if hasattr(rule, "le")), "")
    return f"{lowest} to {highest}" if lowest or highest else ""


def _default_text(name: str, field: FieldInfo) -> str:
    return extra_of(field)["default_text"] or _shown(name, field.default)


def _shown(name: str, value: Any) -> str:
    """Return the value of a setting as text, with secrets masked."""
    if isinstance(value, SecretStr):
        return MASK if value.get_secret_value() else ""
    if name == "SMITH_DATABASE_URL":
        return without_passwords(str(value))
    return _text_of(value)


def _text_of(value: Any) -> str:
    """Return a value as an operator writes it in an environment variable."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, dict):
        return ",".join(f"{key}={item}" for key, item in value.items())
    return ",".join(value) if isinstance(value, tuple) else str(value)
