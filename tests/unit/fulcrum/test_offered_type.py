"""The shipped service types, restricted to what the provider's settings offer."""

from __future__ import annotations

from typing import Any

import pytest

from executor.fulcrum.bootstrap import CONTAINER_SERVICE_TYPE_FILE, VM_SERVICE_TYPE_FILE, read_type_file
from executor.fulcrum.offered_type import restrict_service_type
from executor.settings.settings import Settings

TEMPLATES = {"proxmox_templates": "debian-12=9000,ubuntu-24.04=9001"}


def offered_properties(file: str = VM_SERVICE_TYPE_FILE, **values: Any) -> dict[str, Any]:
    """Return the property schema of a shipped service type, restricted to these settings."""
    properties: dict[str, Any] = restrict_service_type(read_type_file(file), Settings(**values))["propertySchema"][
        "properties"
    ]
    return properties


def test_the_shipped_type_offers_only_the_templates_the_bridges_and_the_vlans_of_the_settings() -> None:
    properties = offered_properties(**TEMPLATES, proxmox_bridges="vmbr1", proxmox_vlans="20,100-199")
    assert properties["image"]["validators"] == [{"type": "enum", "config": {"values": ["debian-12", "ubuntu-24.04"]}}]
    network = properties["network"]["properties"]
    assert network["bridge"]["validators"] == [{"type": "enum", "config": {"values": ["vmbr0", "vmbr1"]}}]
    bounds = {validator["type"]: validator["config"]["value"] for validator in network["vlan"]["validators"]}
    assert bounds == {"min": 0, "max": 199}, "VLAN 0 removes the VLAN of a VM"


def test_by_default_the_type_offers_one_bridge_and_no_vlan() -> None:
    network = offered_properties(**TEMPLATES)["network"]["properties"]
    assert network["bridge"]["validators"] == [{"type": "enum", "config": {"values": ["vmbr0"]}}]
    assert "vlan" not in network


def test_containers_are_offered_with_the_configured_templates() -> None:
    volume = "local:vztmpl/alpine.tar.zst"
    properties = offered_properties(CONTAINER_SERVICE_TYPE_FILE, **TEMPLATES, proxmox_os_templates=f"alpine={volume}")
    assert properties["osTemplate"]["validators"] == [{"type": "enum", "config": {"values": ["alpine"]}}]


@pytest.mark.parametrize(
    ("file", "values"),
    [
        (VM_SERVICE_TYPE_FILE, {"proxmox_any_template": True}),
        (CONTAINER_SERVICE_TYPE_FILE, {"proxmox_os_templates": "alpine=local:vztmpl/alpine.tar.zst"}),
    ],
    ids=["any template", "only container templates"],
)
def test_an_agent_without_vm_templates_also_offers_only_its_bridges_vlans_and_tags(
    file: str, values: dict[str, Any]
) -> None:
    properties = offered_properties(file, **values)
    network = properties["network"]["properties"]
    assert network["bridge"]["validators"] == [{"type": "enum", "config": {"values": ["vmbr0"]}}]
    assert "vlan" not in network
    assert "tags" not in properties


@pytest.mark.parametrize("values", [{}, {"proxmox_bridges": "vmbr1", "proxmox_vlans": "20"}])
def test_settings_without_templates_do_not_restrict_the_type(values: dict[str, str]) -> None:
    assert offered_properties(**values) == read_type_file(VM_SERVICE_TYPE_FILE)["propertySchema"]["properties"]


@pytest.mark.parametrize("file", [VM_SERVICE_TYPE_FILE, CONTAINER_SERVICE_TYPE_FILE])
def test_tags_are_offered_only_if_the_settings_allow_some(file: str) -> None:
    assert "tags" not in offered_properties(file, **TEMPLATES)


def test_allowed_tags_are_offered() -> None:
    shipped = read_type_file(VM_SERVICE_TYPE_FILE)["propertySchema"]["properties"]
    assert offered_properties(**TEMPLATES, proxmox_tags="customer-*")["tags"] == shipped["tags"]


def test_a_property_that_the_settings_do_not_limit_keeps_the_checks_of_the_shipped_type() -> None:
    shipped = read_type_file(VM_SERVICE_TYPE_FILE)["propertySchema"]["properties"]
    unrestricted = offered_properties(
        **TEMPLATES, proxmox_any_template=True, proxmox_bridges="*", proxmox_vlans="*", proxmox_tags="*"
    )
    assert unrestricted == shipped
