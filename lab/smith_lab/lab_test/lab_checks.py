"""Checks whether lab tests can use the lab (a Proxmox for tests), mostly with preflight checks of `smith doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from executor.doctor.checks import Area, CheckResult, ResultFactory, Status
from executor.doctor.proxmox import check_proxmox
from executor.errors import JobError
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.connection import ProxmoxConnection
from smith_lab.lab_test.lab_settings import VARIABLE_PREFIX, LabSettings

_RESULT_FACTORY = ResultFactory(Area.PROXMOX)
#: Checks of `smith doctor` whose results are left out for a lab. "vmid range" checks whether enough VMIDs are free, and
#: "deleted vms" checks for remains of deleted VMs.
SKIPPED_CHECKS = frozenset({"vmid range", "deleted vms"})


def check_lab(lab: LabSettings) -> list[CheckResult]:
    """Check the lab. The remedies name the variables LAB_PROXMOX_* instead of the settings of an executor."""
    checks = [check for check in check_proxmox(lab.executor_settings()) if check.name not in SKIPPED_CHECKS]
    if checks and checks[0].status is not Status.FAILED:  # the first check: does Proxmox answer?
        checks += _check_nodes_and_storage(lab)
    return [_with_lab_variables(check) for check in checks]


def is_lab_usable(checks: list[CheckResult]) -> bool:
    """Return whether lab tests can use the lab: whether none of its checks has failed."""
    return all(check.status is not Status.FAILED for check in checks)


def _check_nodes_and_storage(lab: LabSettings) -> Iterator[CheckResult]:
    """Check the template's node, whether the lab's nodes share the storage, and which optional variables are set."""
    reader = ProxmoxReader(ProxmoxConnection.from_settings(lab.executor_settings()))
    try:
        # `lab.template` is the VMID of the template from which the tests create VMs.
        row = next((row for row in reader.vms() if row.vmid == lab.template), None)
        storages = [row for row in reader.storages() if row.name == lab.storage]
    except JobError as error:
        yield _RESULT_FACTORY.fail("lab", str(error))
        return
    if row is not None and row.node != lab.node:
        text = f"the template {lab.template} is on the node {row.node}, not on {lab.node}"
        yield _RESULT_FACTORY.fail("template's node", text, f"{VARIABLE_PREFIX}NODE={row.node}")
    if lab.second_node and not all(storage.is_shared for storage in storages):
        text = f"{lab.storage} is not shared by {lab.node} and {lab.second_node}: VMs on it cannot be migrated"
        yield _RESULT_FACTORY.fail(
            "shared storage", text, f"{VARIABLE_PREFIX}STORAGE=…", f"or: unset {VARIABLE_PREFIX}SECOND_NODE"
        )
    # `os_template` is the volume of a container template.
    for name in ("second_node", "backup_storage", "os_template"):
        if not getattr(lab, name):
            variable = f"{VARIABLE_PREFIX}{name.upper()}"
            text = f"{variable} is not set: the tests that need it are skipped"
            yield _RESULT_FACTORY.skip(name.replace("_", " "), text, f"{variable}=…")


def _with_lab_variables(check: CheckResult) -> CheckResult:
    """Return the check with the lab's variables in its remedies (`hints`)."""
    hints = (hint.replace("PROXMOX_", VARIABLE_PREFIX) if hint.startswith("PROXMOX_") else hint for hint in check.hints)
    return replace(check, hints=tuple(hints))
