"""Declares the settings for the deletion of VMs: the grace period, the final backup, and what is removed with a VM."""

from __future__ import annotations

from pydantic import ValidationInfo, field_validator

from executor.settings.declare import SettingsArea, duration_setting, setting
from executor.settings.types import ProxmoxName


class DeletionSettings(SettingsArea):
    """Defines what happens to a VM when its service is deleted."""

    smith_delete_grace_s: float = duration_setting(
        0,
        "time between the deletion of a service and the destruction of its VM, which is stopped and marked for "
        "deletion until then; 0: the VM is destroyed at once",
        ge=0,
        example="259200",
    )
    proxmox_backup_storage: ProxmoxName = setting(
        "",
        "storage for backups, including the backups that SMITH_FINAL_BACKUP makes",
        example="backups",
        default_text="none",
    )
    smith_final_backup: bool = setting(
        False, "back up a VM to PROXMOX_BACKUP_STORAGE before it is destroyed", example="false"
    )
    smith_delete_purge: bool = setting(
        False, "when a VM is destroyed, also remove it from backup jobs, replication and HA", example="false"
    )

    smith_delete_remove_volumes: bool = setting(
        False,
        "when a VM is destroyed and volumes of its disks or snapshots remain, remove these volumes, unless "
        "another guest's configuration names them; needs Datastore.Allocate on their storage, and VM.Audit on /vms",
        example="false",
    )

    @field_validator("smith_final_backup")
    @classmethod
    def _require_backup_storage(cls, value: bool, info: ValidationInfo) -> bool:
        if value and not info.data.get("proxmox_backup_storage"):
            raise ValueError("must be false, unless PROXMOX_BACKUP_STORAGE is set")
        return value
