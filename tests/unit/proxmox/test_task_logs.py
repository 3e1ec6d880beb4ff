"""The log of a Proxmox task whose end is unknown: lines about steps do not decide it, even with words like 'failed'.

The lines are those that Proxmox VE 8 and 9 and the programs that they run write into the logs.
"""

from __future__ import annotations

import itertools
import re

import pytest
from ansible_collections.agent_smith.proxmox.plugins.plugin_utils import failures
from ansible_collections.agent_smith.proxmox.plugins.plugin_utils.proxmox_tasks import (
    error_with_cause,
    is_task_outcome_unknown,
    volumes_left_in_log,
)

from executor.shared.error_rules import classify_ansible_task_failure, classify_failure
from executor.shared.reactions import Reaction

#: The statuses of a Proxmox task whose end is unknown.
UNKNOWN_ENDS = (
    "unexpected status",
    "interrupted by signal",
    "received interrupt",
    "no such task",
    "unable to get last line from task log - No such file or directory",
)
#: Lines that the programs of LVM_WARNINGS write in every step that runs them.
LVM_WARNINGS = [
    "  WARNING: You have not turned on protection against thin pools running out of space.",
    "  WARNING: Set activation/thin_pool_autoextend_threshold below 100 to trigger automatic extension of thin pools.",
    '  Logical volume "vm-301-disk-0" created.',
    "  WARNING: Sum of all thin volume sizes (96.00 GiB) exceeds the size of thin pool pve/data (64.00 GiB).",
]
STORAGE_LOCK = ["trying to acquire cfs lock 'storage-ceph' ...", "trying to acquire cfs lock 'storage-ceph' ..."]
GUEST_LOCK = ["trying to acquire lock...", " OK"]
COPY_PROGRESS = [f"transferred {tenth * 0.8:.1f} GiB of 8.0 GiB ({tenth * 10}.00%)" for tenth in range(11)]
DRIVE_MIRROR = [
    "drive mirror is starting for drive-scsi0",
    "drive-scsi0: transferred 1.0 GiB of 8.0 GiB (12.50%) in 4s",
    "drive-scsi0: transferred 8.0 GiB of 8.0 GiB (100.00%) in 30s, ready",
    "all 'mirror' jobs are ready",
    "drive-scsi0: Completing block job...",
    "drive-scsi0: block job cannot be completed, trying again.",
    "drive-scsi0: Completed successfully.",
]
#: The lines of each kind of task.
LOGS: dict[str, list[str]] = {
    "clone on LVM-thin": [
        "creating a clone of VM 9000 with ID 301",
        *STORAGE_LOCK,
        "create full clone of drive scsi0 (local-lvm:base-9000-disk-0)",
        *LVM_WARNINGS,
        *COPY_PROGRESS,
        "create full clone of drive ide2 (local-lvm:vm-9000-cloudinit)",
    ],
    "clone on a directory": [
        *GUEST_LOCK,
        "create full clone of drive scsi0 (local:9000/base-9000-disk-0.qcow2)",
        "Formatting '/srv/images/301/vm-301-disk-0.qcow2', fmt=qcow2 cluster_size=65536 preallocation=metadata",
        *COPY_PROGRESS,
    ],
    "linked clone": [
        "create linked clone of drive scsi0 (ceph:base-9000-disk-0)",
        "clone base-9000-disk-0: base-9000-disk-0 snapname __base__ to vm-301-disk-0",
    ],
    "clone of a running VM": ["create full clone of drive scsi0 (ceph:vm-9000-disk-0)", *DRIVE_MIRROR, "suspend vm"],
    "move of a disk": [
        *GUEST_LOCK,
        "moving disk with snapshots, snapshots will not be moved!",
        "create full clone of drive scsi0 (local-lvm:vm-301-disk-0)",
        "format 'qcow2' is not supported by the target storage 'ceph' - using 'raw' instead",
        *LVM_WARNINGS,
        *DRIVE_MIRROR,
        "removing source volume 'local-lvm:vm-301-disk-0' after successful copy",
        '  Logical volume "vm-301-disk-0" successfully removed.',
    ],
    "resize": [
        *GUEST_LOCK,
        "Image resized.",
        "  Size of logical volume pve/vm-301-disk-0 changed to 16.00 GiB.",
        *LVM_WARNINGS,
    ],
    "backup": [
        "INFO: starting new backup job: vzdump 301 --storage backups --mode snapshot",
        "INFO: trying to get global lock - waiting...",
        "INFO: got global lock",
        "INFO: Starting Backup of VM 301 (qemu)",
        "INFO: status = running",
        "INFO: VM Name: shrink-bootorder",
        "INFO: include disk 'scsi0' 'local-lvm:vm-301-disk-0' 8G",
        "INFO: exclude disk 'scsi1' 'local-lvm:vm-301-disk-1' (backup=no)",
        "INFO: snapshots found (not included into backup)",
        "INFO: pending configuration changes found (not included into backup)",
        "INFO: mode failure - some volumes do not support snapshots",
        "INFO: trying 'suspend' mode instead",
        "INFO: creating vzdump archive '/mnt/backups/dump/vzdump-qemu-301-2026_11_27-04_00_00.vma.zst'",
        "INFO: issuing guest-agent 'fs-freeze' command",
        "WARN: left-over backup job still running inside QEMU - canceling now",
        "INFO: skip unused drive 'local-lvm:vm-301-disk-2' (not included into backup)",
        "INFO:  12% (1.0 GiB of 8.0 GiB) in 3s, read: 341.3 MiB/s, write: 300.0 MiB/s",
    ],
    "destroy": [
        *GUEST_LOCK,
        "purging VM 301 from related configurations..",
        "NOTE: removed VM 301 from HA resource configuration.",
        *STORAGE_LOCK,
        "WARN: Could not remove disk 'local-lvm:vm-301-disk-1', check manually: no such logical volume pve/x",
        "WARN: failed to check if volume 'ceph:base-301-disk-0' is used by linked clones: rbd error: timed out",
        '  Logical volume "vm-301-disk-0" successfully removed.',
    ],
    "start": [
        "WARN: no efidisk configured! Using temporary efivars disk.",
        "generating cloud-init ISO",
        "kvm: warning: host doesn't support requested feature: CPUID.80000001H:ECX.svm [bit 2]",
        "kvm: -device virtio-scsi-pci,id=scsihw0: warning: the hotplug feature needs memory size",
        *LVM_WARNINGS,
        "activating and using 'local-lvm:vm-301-state-suspend' as vmstate",
        "Resuming suspended VM",
        "could not set polling interval for ballooning - VM 301 not running",
    ],
    "stop": [
        "VM is paused - stop instead of shutdown",
        "VM quit/powerdown failed - terminating now with SIGTERM",
        "VM still running - terminating now with SIGKILL",
    ],
    "migration of a running VM": [
        "2026-11-27 04:00:00 starting migration of VM 301 to node 'pve2' (192.0.2.2)",
        "2026-11-27 04:00:00 migrating VM which uses local devices",
        "2026-11-27 04:00:00 found local disk 'local-lvm:vm-301-disk-0' (attached)",
        "2026-11-27 04:00:00 found local disk 'local-lvm:vm-301-state-s1' (referenced by snapshot(s))",
        "2026-11-27 04:00:01 starting VM 301 on remote node 'pve2'",
        "2026-11-27 04:00:02 [pve2]   WARNING: You have not turned on protection against running out of space.",
        "2026-11-27 04:00:03 start remote tunnel",
        "2026-11-27 04:00:03 starting storage migration",
        "2026-11-27 04:00:04 scsi0: start migration to nbd:unix:/run/qemu-server/301_nbd.migrate:exportname=drive",
        *(f"2026-11-27 04:00:05 {line}" for line in DRIVE_MIRROR),
        "2026-11-27 04:00:40 switching mirror jobs to actively synced mode",
        "2026-11-27 04:00:40 starting online/live migration on unix:/run/qemu-server/301.migrate",
        "2026-11-27 04:00:40 set migration capabilities",
        "2026-11-27 04:00:40 migrate-set-parameters error: VM 301 qmp command failed - got timeout",
        "2026-11-27 04:00:41 migration active, transferred 512.0 MiB of 2.0 GiB VM-state, 110.0 MiB/s",
        "2026-11-27 04:00:52 migration status: failed",
        "2026-11-27 04:00:52 skipping guest fstrim, because VM is paused",
    ],
    "migration of a stopped VM": [
        "2026-11-27 04:00:00 starting migration of VM 301 to node 'pve2' (192.0.2.2)",
        "2026-11-27 04:00:00 copying local disk images",
        "2026-11-27 04:00:01 volume pve/vm-301-disk-0 already exists - importing with a different name",
        "2026-11-27 04:00:02 8589934592 bytes (8.6 GB, 8.0 GiB) copied, 40 s, 215 MB/s",
        "2026-11-27 04:00:42 volume 'local-lvm:vm-301-disk-0' is 'local-lvm:vm-301-disk-1' on the target",
    ],
    "snapshot and rollback": [
        "saving VM state and RAM using storage 'local-lvm'",
        "completed saving the VM state in 4s, saved 512.0 MiB",
        "snapshotting 'drive-scsi0' (local-lvm:vm-301-disk-0)",
        "internal qemu snapshot",
        *LVM_WARNINGS,
    ],
}
#: Statuses of a failed task that do not name the cause.
FAILED_ENDS = ("clone failed: the volume said no", "migration aborted", "start failed: QEMU exited with code 1")
#: Every log line, without quotes: a module of community.proxmox quotes one when it has waited too long for a task.
QUOTES = sorted({line.replace("'", "") for log in LOGS.values() for line in log})


def cuts_of(log: list[str]) -> list[list[str]]:
    """Return the beginnings of the log that end before a word, or at the end of a line."""
    starts = [(number, word.start()) for number, line in enumerate(log) for word in re.finditer(r"\S+|\Z", line)]
    return [[*log[:number], log[number][:position]] for number, position in starts]


def code_of(status: str, log: list[str]) -> str:
    return failures.proxmox_task_failure(error_with_cause(status, log)).partition(":")[0]


@pytest.mark.parametrize("name", LOGS)
def test_the_lines_about_steps_do_not_decide_an_unknown_end(name: str) -> None:
    log = LOGS[name]
    assert [cut[-1] for cut in cuts_of(log) if code_of(UNKNOWN_ENDS[0], cut) != "PVE_TIMEOUT"] == []
    assert {code_of(status, log) for status in UNKNOWN_ENDS} == {"PVE_TIMEOUT"}


@pytest.mark.parametrize("name", LOGS)
def test_the_lines_about_steps_are_not_the_cause_of_a_failure(name: str) -> None:
    log = LOGS[name]
    codes = {code_of(status, log[: number + 1]) for status in FAILED_ENDS for number in range(len(log))}
    assert codes == {"TASK_FAILED"}


@pytest.mark.parametrize("status", UNKNOWN_ENDS)
def test_a_proxmox_task_whose_worker_was_killed_has_an_unknown_end(status: str) -> None:
    assert is_task_outcome_unknown({"status": status})


@pytest.mark.parametrize(
    ("status", "line", "code"),
    [
        ("unexpected status", "ERROR: can't acquire lock '/var/run/vzdump.lock' - got timeout", "VM_LOCKED"),
        ("job errors", "ERROR: Backup of VM 301 failed - no space left on device: No space left on device", "CAPACITY"),
        ("migration aborted", "2026-11-27 04:00:01 ERROR: storage 'ceph' is not online", "STORAGE_UNAVAILABLE"),
        ("start failed: QEMU exited with code 1", "kvm: pc.ram: Cannot allocate memory", "CAPACITY"),
        (
            "command 'ha-manager set vm:301 --state started' failed: exit code 255",
            "service 'vm:301' in error state, must be disabled and fixed first",
            "VM_STATE",
        ),
        ("startup for container '301' failed", "unable to activate storage 'nfs' - not mounted", "STORAGE_UNAVAILABLE"),
    ],
)
def test_a_log_line_about_an_error_is_the_cause_of_the_failure(status: str, line: str, code: str) -> None:
    for log in LOGS.values():
        assert code_of(status, [*log[:3], line]) == code


def test_a_warning_of_a_program_is_not_the_cause_of_its_failure() -> None:
    assert code_of("startup for container '301' failed", LVM_WARNINGS) == "TASK_FAILED"


def test_a_log_line_that_a_module_quotes_does_not_decide_how_the_proxmox_task_ends() -> None:
    """The module has waited for the task up to its timeout, and its message quotes one line of the log."""
    beginnings = ("Reached timeout while waiting for moving VM disk. ", "Reached timeout. ", "Reached timeout while x.")
    for words, quote in itertools.product(beginnings, QUOTES):
        text = f"{words}Last line in task before timeout: [{{'n': 1, 't': '{quote}'}}]"
        answer = {"failed": True, "msg": text}
        assert classify_failure(text).code == "TASK_TIMEOUT"
        assert (
            classify_ansible_task_failure({}, text, "community.proxmox.proxmox_disk").reaction is Reaction.CHECK_FIRST
        )
        assert failures.is_outcome_unknown(answer)
        facts = {"vmid": 301, "reached": False, "task_error": "", "running_tasks": [], "lock": "", "status": "stopped"}
        assert failures.outcome_problem(facts, answer, "running").startswith("TASK_TIMEOUT: ")


def test_the_volumes_that_a_deletion_could_not_remove_are_read_from_its_log() -> None:
    log = [
        "WARN: Could not remove disk 'local-lvm:vm-301-disk-0', check manually: busy",
        "WARN: failed to get path and owner of volume 'gone:vm-301-disk-1': storage 'gone' does not exist",
        "error removing fleecing image 'local-lvm:vm-301-fleece-0' - busy",
        "WARN: failed to check if volume 'local-lvm:base-301-disk-2' is used by linked clones: busy",
    ]
    assert volumes_left_in_log(log) == ["local-lvm:vm-301-disk-0", "gone:vm-301-disk-1", "local-lvm:vm-301-fleece-0"]
