"""Declares the limits of what all VMs of one tenant may use together."""

from __future__ import annotations

from typing import Any

from executor.settings.declare import SettingsArea, whole_number_setting


def _limit_setting(amount: str) -> Any:
    return whole_number_setting(0, f"{amount} that one tenant (consumer in FulcrumCore) may have; 0: no limit", ge=0)


class TenantSettings(SettingsArea):
    """Limits what one tenant may have. A request beyond a limit fails with CAPACITY."""

    smith_tenant_max_vms: int = _limit_setting("VMs and containers")
    smith_tenant_max_cores: int = _limit_setting("cores of all VMs together")
    smith_tenant_max_memory_mib: int = _limit_setting("memory in MiB of all VMs together")
    smith_tenant_max_disk_gib: int = _limit_setting("disk space in GiB of all VMs together")
    smith_tenant_max_snapshots: int = _limit_setting("snapshots of all VMs together")
    smith_tenant_max_backups: int = _limit_setting("backups of all VMs together")
