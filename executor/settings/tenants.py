"""Declares the settings that limit how much all VMs of one tenant may use together."""

from __future__ import annotations

from typing import Any

from executor.settings.declare import SettingsArea, whole_number_setting


def _limit_setting(limited_quantity: str, unit: str = "") -> Any:
    text = f"maximum {limited_quantity} of one tenant (consumer in FulcrumCore); 0: no limit"
    return whole_number_setting(0, text, ge=0, unit=unit)


class TenantSettings(SettingsArea):
    """Limits the resources of one tenant. A job that would exceed a limit fails with the error code CAPACITY."""

    smith_tenant_max_vms: int = _limit_setting("number of VMs and containers")
    smith_tenant_max_cores: int = _limit_setting("number of cores of all VMs and containers")
    smith_tenant_max_memory_mib: int = _limit_setting("memory of all VMs and containers", "MiB")
    smith_tenant_max_disk_gib: int = _limit_setting("disk space of all VMs and containers", "GiB")
    smith_tenant_max_snapshots: int = _limit_setting("number of snapshots of all VMs and containers")
    smith_tenant_max_backups: int = _limit_setting("number of backups of all VMs and containers")
