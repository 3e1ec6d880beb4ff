"""Restricts a service type to the values that the provider's settings allow, so that FulcrumCore refuses other values.

The agent refuses other values, too, because an administrator may change the service types in FulcrumCore. Pure
functions.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable
from typing import Any

from executor.settings.settings import Settings
from executor.settings.types import ANY_VALUE

JsonObject = dict[str, Any]


def restrict_service_type(service_type: JsonObject, settings: Settings) -> JsonObject:
    """Return the service type with only the templates, bridges and VLANs that the settings allow.

    The property `image` names a VM template of the setting `proxmox_templates`, and the property `osTemplate` a
    container template of the setting `proxmox_os_templates`. If one of these settings is empty, its property is not
    restricted. The setting `proxmox_any_template` allows every template.

    In the settings of bridges, VLANs and tags, the entry ANY_VALUE (`*`) allows every value, and must be the only
    entry.

    If the settings allow no tag, the property `tags` is removed. If they allow only some tags, the returned type allows
    every tag, and the agent refuses the tags that the settings do not allow.

    If no setting allows a template, the service type is returned unchanged: the command that creates the type then
    probably runs on a machine without the agent's settings.
    """
    if not (settings.proxmox_templates or settings.proxmox_os_templates or settings.proxmox_any_template):
        return service_type
    restricted_type = copy.deepcopy(service_type)
    properties = restricted_type["propertySchema"]["properties"]
    if not settings.proxmox_any_template:
        for name, templates in (("image", settings.proxmox_templates), ("osTemplate", settings.proxmox_os_templates)):
            if name in properties and templates:
                properties[name]["validators"] = [_enum_validator(templates)]
    network_properties = properties.get("network", {}).get("properties", {})
    if "bridge" in network_properties and ANY_VALUE not in settings.proxmox_bridges:
        network_properties["bridge"]["validators"] = [  # the default bridge and the bridges allowed besides it
            _enum_validator([settings.proxmox_bridge, *settings.proxmox_bridges])
        ]
    if "vlan" in network_properties:
        _restrict_vlan(network_properties, settings.proxmox_vlans)
    if not settings.proxmox_tags:
        properties.pop("tags", None)
    return restricted_type


def _enum_validator(values: Iterable[str]) -> JsonObject:
    return {"type": "enum", "config": {"values": sorted(set(values))}}


def _restrict_vlan(network_properties: JsonObject, vlans: Collection[str]) -> None:
    """Limit the property `vlan` to the highest VLAN in `vlans`. If `vlans` is empty, remove the property.

    The lowest value stays 0, because 0 removes the VLAN of a VM. Between 1 and the highest VLAN, the property still
    allows VLANs that are not in `vlans`, but the agent refuses these VLANs. If `vlans` contains ANY_VALUE (its only
    entry), the property is not changed.
    """
    highest_vlan = max((_last_vlan_of_range(text) for text in vlans if text != ANY_VALUE), default=0)
    if highest_vlan:
        other_validators = [
            validator for validator in network_properties["vlan"]["validators"] if validator["type"] != "max"
        ]
        network_properties["vlan"]["validators"] = [
            *other_validators,
            {"type": "max", "config": {"value": highest_vlan}},
        ]
    elif ANY_VALUE not in vlans:
        del network_properties["vlan"]


def _last_vlan_of_range(text: str) -> int:
    first, _, last = text.partition("-")
    return int(last or first)
