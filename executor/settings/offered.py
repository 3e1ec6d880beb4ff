"""Reads from the settings which bridges, VLANs, storages, tags and templates the provider offers to services.

The extra var `vm` of each playbook run contains the values that the service requests, and in its member `allowed` the
lists of the values that the provider offers. The Ansible action plugins refuse a requested value that is not in these
lists, unless the VM already has the value (`plugins/plugin_utils/allowed.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from executor.errors import JobError
from executor.shared.error_codes import ErrorCode

if TYPE_CHECKING:
    from executor.settings.settings import Settings

#: The maximum number of templates that a message names.
MAX_NAMED_TEMPLATES = 10


def allowed_values(settings: Settings) -> dict[str, list[str]]:
    """Return the bridges, VLANs, storages and tags that a service may use.

    The returned dictionary is the member `allowed` of `vm`. PROXMOX_BRIDGE, PROXMOX_STORAGE and PROXMOX_BACKUP_STORAGE
    are always allowed: they are used if a service names no bridge or storage.
    """
    storages = settings.proxmox_storages
    allowed = {
        "bridges": [settings.proxmox_bridge, *settings.proxmox_bridges],
        "vlans": list(settings.proxmox_vlans),
        "storages": [settings.proxmox_storage, *storages],
        "tags": list(settings.proxmox_tags),
        "backup_storages": [settings.proxmox_backup_storage, *storages],
    }
    return {name: list(dict.fromkeys(filter(None, values))) for name, values in allowed.items()}


def template_not_configured_error(
    template: str,
    configured_templates: Iterable[str],
    setting_name: str = "PROXMOX_TEMPLATES",
    further_condition: str = "PROXMOX_ANY_TEMPLATE is not set",
) -> JobError:
    """Return the error of a job whose template is not in the setting `setting_name`.

    The tenant (the customer who uses the service) reads the same text as for a template that does not exist. Only the
    text for operators names the setting and the configured templates.

    `setting_name` is PROXMOX_OS_TEMPLATES for a container's template. If PROXMOX_ANY_TEMPLATE is set, some templates
    that are not in the setting are accepted. `further_condition` says why this template is not accepted.
    """
    names = ", ".join(sorted(configured_templates)[:MAX_NAMED_TEMPLATES]) or "none"
    problem = f"{setting_name} has no template {template} (configured templates: {names})"
    text_for_operators = f"{problem}, and {further_condition}"
    return JobError(ErrorCode.NOT_FOUND, f"no template is called {template}", text_for_operators)
