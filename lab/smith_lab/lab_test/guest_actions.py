"""Runs actions and playbooks on guests of one run of lab tests, as `smith play` does for an operator."""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from executor.cli import action_checks, ansible_playbook
from executor.cli.play_vm import build_request, make_vm_variable
from executor.model import GuestKind, JobResult
from executor.runs import actions
from executor.runs.actions import Action, collection_folder
from executor.settings.settings import Settings
from smith_lab.lab_test.cluster import LabCluster, LabError
from smith_lab.lab_test.lab_settings import IMAGE
from smith_lab.lab_test.open_lab import CLEANUP_S, LabRun
from smith_lab.lab_test.removal_rules import run_token_of_guest

#: The default timeouts of an action and of a guest's shutdown, as members of `vm`, the variable that describes the
#: guest. A test may pass other values.
DEFAULT_TIMEOUTS = {"timeout_s": 300, "shutdown_timeout_s": 20}
CONTAINER_DISK_GIB = 4
#: A label is a part of a guest's name, which is a DNS name of at most 63 characters.
LABEL_PATTERN = re.compile(r"[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?")
#: The members of `vm` that identify a guest. The other members describe the requested configuration.
IDENTITY_MEMBERS = ("service_id", "vmid", "name", "node", "kind", "cluster")


@dataclass
class GuestActions:
    """Creates guests with the VMIDs of a run of lab tests, runs actions and playbooks on them, and removes them.

    An action is a playbook of Agent Smith or of the provider. The variable `vm` of an action describes the guest. In
    this class, a run is a run of lab tests. The lease of a run reserves VMIDs for the run. When the lease expires, the
    reservation ends. The token of the lease identifies the run.
    """

    lab_run: LabRun
    actions_folder: Path | None = None  #: the provider's own actions
    #: The index of this pytest worker, and the number of all workers. No two workers use the same VMIDs.
    worker_index_and_count: tuple[int, int] = (0, 1)

    @cached_property
    def cluster(self) -> LabCluster:
        """The lab's Proxmox."""
        return LabCluster(self.lab_run.settings)

    @cached_property
    def settings(self) -> Settings:
        """The settings with which the actions run."""
        overrides = {"smith_actions_path": self.actions_folder} if self.actions_folder else {}
        return self.lab_run.settings.executor_settings(**overrides)

    @cached_property
    def vmids(self) -> range:
        """The VMIDs of this worker's guests."""
        index, count = self.worker_index_and_count
        vmids = self.lab_run.reserved_range.guest_vmids
        return vmids[len(vmids) * index // count : len(vmids) * (index + 1) // count]

    @cached_property
    def _vmid_queue(self) -> deque[int]:
        """The VMIDs of this worker's guests, in the order in which `_free_vmid` tries them."""
        return deque(self.vmids)

    def _free_vmid(self) -> int:
        """Return a free VMID, and move it to the end of the queue. Raises LabError if no VMID is free."""
        for _each in self.vmids:
            vmid = self._vmid_queue[0]
            self._vmid_queue.rotate(-1)
            if self.cluster.proxmox_reader.is_vmid_free(vmid):
                return vmid
        raise LabError(
            f"this pytest process has {len(self.vmids)} VMIDs for guests, and all are in use: remove guests earlier, "
            "increase LAB_PROXMOX_RANGE_SIZE, or do not use --keep"
        )

    @cached_property
    def _template_disk_gib(self) -> int:
        return self.cluster.template_disk_gib(self.lab_run.settings.template)

    def new_vm_variable(self, label: str = "vm", **members: Any) -> dict[str, Any]:
        """Return the variable `vm` for a guest to create, with a new service id, a free VMID and a name.

        The name begins with the prefix of this run.

        Raises LabError if the label cannot be a part of a name, or if no VMID is free.
        """
        if not LABEL_PATTERN.fullmatch(label):
            raise LabError(f"the label {label!r} must have 1 to 20 characters: a-z, 0-9, and hyphens between them")
        service_id = self.lab_run.reserved_range.new_service_id()
        vmid = self._free_vmid()
        name = f"{self.lab_run.reserved_range.prefix}-{label}-{service_id[:8]}"
        is_container = members.get("kind") == GuestKind.LXC
        # The settings map the image name IMAGE to the lab's VM template and to the lab's container template.
        source = {"os_template": IMAGE} if is_container else {"template": IMAGE}
        disk_gib = CONTAINER_DISK_GIB if is_container else self._template_disk_gib
        size = {"cores": 1, "memory_mib": 512, "disk_gib": disk_gib}
        return {"service_id": service_id, "vmid": vmid, "name": name, **source, **size, **DEFAULT_TIMEOUTS, **members}

    def create(self, vm: Mapping[str, Any]) -> dict[str, Any]:
        """Create a guest with the action `create`; return the members of `vm` that later actions need.

        Raises AssertionError if the action fails.
        """
        result = self.run_action("create", vm)
        assert result.succeeded, result.operator_message  # noqa: S101 (pytest shows the message as the test's failure)
        return {name: vm[name] for name in (*IDENTITY_MEMBERS, *DEFAULT_TIMEOUTS) if name in vm} | {
            "node": result.vm["node"]
        }

    def run_action(self, name: str, vm: Mapping[str, Any], *, check: bool = False, **members: Any) -> JobResult:
        """Run an action with `members` added to `vm`; return the result. With `check`, change nothing (a dry run).

        If the provider and Agent Smith both have an action of this name, the provider's action is run. Raises JobError
        if the provider's action is unsafe: for example, if other users can change its files.
        """
        builtin_folder = collection_folder() / "playbooks"
        folders = (self.actions_folder, builtin_folder) if self.actions_folder else (builtin_folder,)
        return self._run_playbook_of_action(actions.find_safe_action(name, folders), {**vm, **members}, check=check)

    def run_playbook(self, playbook: Path, vm: Mapping[str, Any], *, check: bool = False, **members: Any) -> JobResult:
        """Run any playbook; return the result. The playbook gets the variable `vm` and the login for Proxmox.

        The error code is RESULT_INVALID if the playbook returns no result to the executor.
        """
        # schema=None: there is no JSON Schema for the members. `is_ours` is True only for the actions of Agent Smith.
        action = Action(name=playbook.stem, playbook=playbook.resolve(), schema=None, is_ours=False)
        return self._run_playbook_of_action(action, {**vm, **members}, check=check)

    def _run_playbook_of_action(self, action: Action, vm: dict[str, Any], *, check: bool) -> JobResult:
        """Run the playbook of an action; return the result.

        Raises LabError in the last CLEANUP_S seconds of the reservation, which are for the removal of the guests.
        """
        if self.cluster.now() >= self.lab_run.reserved_range.lease.expires_at_s - CLEANUP_S:
            raise LabError(
                "the reservation of this run ends soon, so no further action is run: run fewer tests, or increase "
                "--time-limit of `smith lab-test`"
            )
        # The Ansible argument specs of the members of `vm` that the playbook accepts.
        member_specs = action_checks.read_vm_member_specs(action.playbook)
        # Members that `vm` lacks are added from the settings. identity={}: `vm` already contains the guest's service
        # id, VMID and name.
        complete_vm = make_vm_variable(vm, action, self.settings, identity={}, member_specs=member_specs)
        request = build_request(action, complete_vm, member_specs, is_check_mode=check)
        return ansible_playbook.run(request, self.settings, sys.stdout)

    def remove(self, vmids: set[int]) -> None:
        """Remove the run's guests that have these VMIDs, except templates. A missing guest is no error."""
        for guest in self.cluster.guests(self.lab_run.reserved_range.guest_vmids):
            belongs_to_run = run_token_of_guest(guest, self.lab_run.settings) == self.lab_run.reserved_range.lease.token
            if guest.vmid in vmids and belongs_to_run and not guest.is_template:
                self.cluster.stop_and_remove(guest)
