"""Formats the settings for `smith config show`, docs/settings.md and an example `.env` file. Masks secrets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from executor.redaction import MASK
from executor.settings.agent import AgentSettings
from executor.settings.declare import SettingsArea, documentation_of
from executor.settings.deletion import DeletionSettings
from executor.settings.files import FileSettings
from executor.settings.fulcrum import FulcrumSettings
from executor.settings.masking import mask_passwords
from executor.settings.monitoring import MonitoringSettings
from executor.settings.new_vms import NewVmSettings
from executor.settings.proxmox import ProxmoxSettings
from executor.settings.runs import RunSettings
from executor.settings.settings import FIELDS, SECRET_SETTING_NAMES, Settings
from executor.settings.tenants import TenantSettings

#: The sections of docs/settings.md, each with the class that declares its settings.
SECTIONS: dict[str, type[SettingsArea]] = {
    "FulcrumCore": FulcrumSettings,
    "Proxmox VE": ProxmoxSettings,
    "New VMs": NewVmSettings,
    "Database and folders": FileSettings,
    "Jobs and playbook runs": RunSettings,
    "Limits of a tenant": TenantSettings,
    "Deletion": DeletionSettings,
    "Agent": AgentSettings,
    "HTTP server and logs": MonitoringSettings,
}
#: The settings that the example `.env` file sets. The file contains all other settings as comments.
_SETTINGS_SET_IN_EXAMPLE = (
    "FULCRUM_API_URL",
    "FULCRUM_API_TOKEN",
    "PROXMOX_HOST",
    "PROXMOX_USER",
    "PROXMOX_TOKEN_ID",
    "PROXMOX_TOKEN_SECRET",
)


@dataclass(frozen=True, kw_only=True)
class SettingRow:
    """One setting. Its value and its default are texts in which secrets are masked."""

    name: str
    value: str
    #: `default`, `environment`, the path of a file, `argument` (of `Settings(…)`) or `FulcrumCore`, which supplies
    #: values if SMITH_REMOTE_CONFIG is true.
    origin: str
    unit: str
    default: str
    description: str


def setting_rows(settings: Settings) -> list[SettingRow]:
    """Return every setting with its value and the origin of this value.

    FIELDS maps the name of each setting to its declaration.
    """
    return [
        SettingRow(
            name=name,
            value=_masked_text(name, getattr(settings, name.lower())),
            origin=settings.origin_of(name),
            unit=documentation_of(field)["unit"],
            default=_default_text(name, field),
            description=field.description or "",
        )
        for name, field in FIELDS.items()
    ]


def settings_tables_markdown() -> str:
    """Return the tables of docs/settings.md in Markdown, one table per section."""
    lines: list[str] = []
    for title, area in SECTIONS.items():
        lines += [f"## {title}", "", "| variable | default | unit | allowed | meaning |", "|---|---|---|---|---|"]
        lines += [_table_row(attribute.upper(), field) for attribute, field in area.model_fields.items()]
        lines.append("")
    return "\n".join(lines)


def example_env() -> str:
    """Return an example `.env` file. It sets the required settings, and contains every other setting as a comment."""
    paragraphs = []
    for name, field in FIELDS.items():
        documentation = documentation_of(field)
        comment_sign = "" if name in _SETTINGS_SET_IN_EXAMPLE else "#"
        unit = f" [{documentation['unit']}]" if documentation["unit"] else ""
        paragraphs.append(f"# {field.description}{unit}\n{comment_sign}{name}={documentation['example']}\n")
    return "\n".join(paragraphs)


def _table_row(name: str, field: FieldInfo) -> str:
    secret_mark = " *(secret)*" if name in SECRET_SETTING_NAMES else ""
    unit = documentation_of(field)["unit"]
    cells = (f"`{name}`{secret_mark}", _default_text(name, field), unit, _bounds_text(field), field.description)
    escaped_cells = [str(cell).replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped_cells)} |"


def _bounds_text(field: FieldInfo) -> str:
    """Return the bounds of a number, as in `0 to 3600`; '' if the setting has no bounds."""
    # Pydantic stores the bounds in the list `metadata`, as objects with an attribute `ge` or `le`.
    lowest = next((str(bound.ge) for bound in field.metadata if hasattr(bound, "ge")), "")
    highest = next((str(bound.le) for bound in field.metadata if hasattr(bound, "le")), "")
    return f"{lowest} to {highest}" if lowest or highest else ""


def _default_text(name: str, field: FieldInfo) -> str:
    # A setting whose default is computed must have a `default_text`, because its `field.default` has no value.
    return documentation_of(field)["default_text"] or _masked_text(name, field.default)


def _masked_text(name: str, value: Any) -> str:
    """Return the value of a setting as text, with secrets masked."""
    if isinstance(value, SecretStr):
        return MASK if value.get_secret_value() else ""
    if name == "SMITH_DATABASE_URL":
        return mask_passwords(str(value))
    return _environment_text(value)


def _environment_text(value: Any) -> str:
    """Return a value as an operator writes it in an environment variable."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.15g}"  # with 15 digits, 0.1 is shown as 0.1 and 5.0 as 5
    if isinstance(value, dict):
        return ",".join(f"{key}={item}" for key, item in value.items())
    return ",".join(value) if isinstance(value, tuple) else str(value)
