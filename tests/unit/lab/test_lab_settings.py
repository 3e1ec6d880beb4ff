"""The settings of a lab, from the variables LAB_PROXMOX_*."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from smith_lab.lab_test.lab_settings import REQUIRED_VARIABLES, LabSettings, require_vmids_outside_agent_range
from support.lab_settings import lab_settings

from executor.errors import SettingsError
from executor.settings.settings import Settings

VARIABLES = lab_settings().variables()


def settings_with(**changed: str) -> LabSettings:
    values = VARIABLES | {f"LAB_PROXMOX_{name}": text for name, text in changed.items()}
    return LabSettings.from_environment(values)


def test_settings_passed_through_the_environment_are_read_back_unchanged() -> None:
    lab = lab_settings(validate_certs=False, second_node="pve2")
    assert LabSettings.from_environment(lab.variables()) == lab


def test_the_error_names_each_missing_variable() -> None:
    with pytest.raises(SettingsError) as error:
        LabSettings.from_environment({})
    assert all(f"LAB_PROXMOX_{name}" in str(error.value) for name in REQUIRED_VARIABLES)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"VMID_MIN": "x"}, "VMID_MIN must be a whole number"),
        ({"VMID_MIN": "90060"}, "VMID_MAX at most"),
        ({"RANGE_SIZE": "10"}, "RANGE_SIZE must be at least 11"),
        ({"RANGE_SIZE": "61"}, "at least 61 VMIDs"),
        ({"NAME_PREFIX": "-lab"}, "NAME_PREFIX"),
        ({"NAME_PREFIX": "lab.*"}, "NAME_PREFIX"),
        ({"NAME_PREFIX": "a" * 21}, "NAME_PREFIX"),
        ({"NAME_PREFIX": "CI"}, "lower-case"),
        ({"NAME_PREFIX": "ci-0123ab"}, "six hexadecimal digits"),
    ],
)
def test_a_wrong_value_is_refused(changed: Mapping[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        settings_with(**changed).require_enough_vmids_for_one_test_run()


def test_the_vmids_are_divided_into_ranges_and_the_remaining_vmids_stay_unused() -> None:
    assert settings_with(VMID_MAX="90050").ranges() == [range(90_000, 90_020), range(90_020, 90_040)]


def test_the_executors_settings_name_the_labs_objects() -> None:
    settings = settings_with(SECOND_NODE="pve2", OS_TEMPLATE="local:vztmpl/debian.tar.zst").executor_settings()
    assert settings.proxmox_nodes == ("pve1", "pve2")
    assert settings.proxmox_templates == {"lab": 9000}
    assert settings.proxmox_os_templates == {"lab": "local:vztmpl/debian.tar.zst"}
    assert (settings.proxmox_storage, settings.proxmox_backup_storage) == ("ceph", "backups")
    assert settings.proxmox_token_secret.get_secret_value() == "0000"


@pytest.mark.parametrize(("first", "last"), [(90_059, 99_999), (80_000, 90_000), (90_010, 90_011)])
def test_vmids_in_the_production_range_are_refused(first: int, last: int) -> None:
    with pytest.raises(SettingsError, match="overlap the VMIDs of production"):
        require_vmids_outside_agent_range(lab_settings(), Settings(proxmox_vmid_min=first, proxmox_vmid_max=last))


def test_vmids_outside_the_production_range_are_accepted() -> None:
    require_vmids_outside_agent_range(lab_settings(), Settings())
    require_vmids_outside_agent_range(lab_settings(), Settings(proxmox_vmid_min=90_060, proxmox_vmid_max=90_100))
