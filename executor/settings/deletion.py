"""Declares the settings for the deletion of VMs: grace period, final backup, and removal from other configurations."""

from __future__ import annotations

from pydantic import ValidationInfo, field_validator

from executor.settings.declare import Area, seconds, setting
from executor.settings.types import Name


class DeletionSettings(Area):
    """What happens to a VM when its service is deleted."""

    smith_delete_grace_s: float = seconds(
        0,
        "time for which a deleted VM is kept, stopped and marked, before it is destroyed; 0: destroyed at once",
        ge=0,
        example="259200",
    )
    proxmox_backup_storage: Name = setting(
        "", "storage for backups, final backups included", example="backups", default_text="none"
    )
    smith_final_backup: bool = setting(
        False, "back up a VM to PROXMOX_BACKUP_STORAGE before it is destroyed", example="false"
    )
    smith_delete_purge: bool = setting(
        False, "remove a deleted VM from backup jobs, replication and HA too", example="false"
    )

    @field_validator("smith_final_backup")
    @classmethod
    def _require_backup_storage(cls, value: bool, info: ValidationInfo) -> bool:
        if value and not info.data.get("proxmox_backup_storage"):
            raise ValueError("is wrong, it needs PROXMOX_BACKUP_STORAGE")
        return value
