# SPDX-License-Identifier: Apache-2.0
"""The action plugin `vm_present`: creates a guest with its reserved VMID, or adopts it, and configures it."""

from __future__ import annotations

from typing import Any, ClassVar

from ..plugin_utils import cloud_init, configuration, creation, failures, node_limits, sources, steps, volumes
from ..plugin_utils.identity import kind_of, lock_problem, reserved_vmid_problem
from ..plugin_utils.request_values import is_yes
from ..plugin_utils.shared.required_members import REQUIRED_MEMBERS_BY_PLUGIN
from ..plugin_utils.vm_action import Facts, VmAction

#: Optional parameters of the module proxmox_kvm for a new VM that is not cloned from a template.
VM_PARAMETERS = (
    *("description", "tags", "cores", "sockets", "memory", "balloon", "cpu", "onboot", "protection", "boot", "agent"),
    *("net", "scsi", "virtio", "sata", "ide"),
)
#: Optional parameters of the module `proxmox` for a new container.
CONTAINER_PARAMETERS = (
    *("description", "tags", "cores", "memory", "swap", "onboot", "netif", "nameserver", "searchdomain"),
)


class ActionModule(VmAction):
    """Creates the guest, or adopts the guest that an interrupted run has created; then configures it.

    A service never gets a second guest. `self.vm` is the argument `vm`: which guest, and its requested state.
    """

    REQUIRED_MEMBERS: ClassVar[tuple[str, ...]] = REQUIRED_MEMBERS_BY_PLUGIN["vm_present"]

    def execute(self) -> dict[str, Any]:
        vm = self.vm
        self.progress.write_line("looking up the VMID and the template")
        # `unlocked`: wait while Proxmox is creating or deleting a guest with this VMID. Other locks are not waited for.
        before = self.look_up(
            template_vmid=int(vm.get("template_vmid") or 0), template=str(vm.get("template") or ""), wait_for="unlocked"
        )
        # The whole request is checked before the first change.
        self.refuse_if(reserved_vmid_problem(before, vm), lock_problem(before), creation.request_problem(before, vm))
        if not before["exists"]:
            self.refuse_if(self._node_problem(before))
            self.refuse_if(self._template_or_image_problem(before["template"]))
            self.refuse_if(self._old_volumes_problem(before["template"]))
        if not before["exists"] and self.is_check_mode:
            return self._check_mode_result(before)
        creation_step = steps.result_without_change(before) if before["exists"] else self._create(before)
        # If the configuration fails, the action plugin returns the result document (the dictionary `vm_result`) that is
        # stored here.
        self.store_vm_result_for_failure(creation_step.facts, adopted=before["exists"])
        configuration_step = steps.ensure_configured(
            self, creation_step.facts, self.vm, is_create=True, were_node_limits_checked=not before["exists"]
        )
        planned_values: dict[str, Any] = {}
        if self.is_check_mode:
            planned_values = configuration.planned_values(creation_step.facts, self.vm, is_create=True)
        return self.build_result_document(
            configuration_step.facts,
            changed=creation_step.is_changed or configuration_step.is_changed,
            adopted=before["exists"],
            upids=creation_step.upids + configuration_step.upids,
            planned=planned_values,
        )

    def _old_volumes_problem(self, template: dict[str, Any]) -> str:
        """Return a problem if volumes of a deleted guest with this VMID are on the new guest's storages; '' if not."""
        node = self._node_of_new_guest(template)
        storages = volumes.storages_of_new_guest(self.vm, template)
        return volumes.old_volumes_problem(self.cluster, node, int(self.vm["vmid"]), storages)

    def _template_or_image_problem(self, template: dict[str, Any]) -> str:
        """Return why Proxmox cannot create a guest from the template or the image now; '' if it can.

        The image is an ISO image, or the OS template of a container.
        """
        if self._is_clone():
            return sources.template_problem(self.cluster, template, self.vm)
        return sources.image_problem(self.cluster, self.vm)

    def _node_problem(self, before: Facts) -> str:
        """Return why the node cannot give the new guest the requested hardware or networks; '' if it can."""
        node = self._node_of_new_guest(before["template"])
        return node_limits.request_problem(self.cluster, node, self._initial_facts(before), self.vm, is_new=True)

    def _initial_facts(self, before: Facts) -> Facts:
        """Return the facts with the new guest's initial configuration.

        For a clone, these are the template's facts; for any other new guest, the facts of an absent guest (`before`).
        """
        return before["template"] if self._is_clone() else before

    def _node_of_new_guest(self, template: dict[str, Any]) -> str:
        return str(self.vm.get("node") or template.get("node") or "")

    def _check_mode_result(self, before: Facts) -> dict[str, Any]:
        """Return the result document in check mode for a guest that does not exist yet."""
        self.diff = configuration.values_before_and_after(self._initial_facts(before), self.vm, is_create=True)
        return self.build_result_document(before, changed=True, planned=self.diff["after"])

    def _is_clone(self) -> bool:
        return not (creation.is_created_without_template(self.vm) or kind_of(self.vm) == "lxc")

    def _create(self, before: Facts) -> steps.StepResult:
        if self._is_clone():
            answer = self._clone(before["template"])
        else:
            create = self._create_container if kind_of(self.vm) == "lxc" else self._create_without_template
            # If Proxmox refuses a tag, the creation is repeated without tags.
            self.vm, answer = steps.change_or_repeat_without_tags(self, self.vm, lambda vm: create(before, vm))
        template = before["template"]
        # `node` is the node of the Proxmox task. Proxmox makes a clone on the template's node, and then moves it to the
        # requested node.
        after = self.look_up_after_change(
            before,
            wait_for="cloned" if self._is_clone() else "created",
            node=template.get("node") or self.vm["node"],
            template_vmid=template.get("vmid", 0),
            template_node=template.get("node", ""),
        )
        # After VM_ID_TAKEN, the agent creates a guest with another VMID. If Proxmox has accepted the creation with this
        # VMID, the service could get two guests. So VM_IDENTITY_MISMATCH replaces VM_ID_TAKEN in this case.
        problem = failures.replace_vmid_taken_code(reserved_vmid_problem(after, self.vm), answer)
        # `wanted_state` is only used in the error text.
        self.fail_on_outcome_problem(problem, failures.outcome_problem(after, answer, wanted_state="created"))
        return steps.StepResult(facts=after, is_changed=True, upids=after["upids"])

    def _clone(self, template: dict[str, Any]) -> dict[str, Any]:
        """Clone the template.

        The module proxmox_kvm does not notice a failed clone. So the module does not wait for the Proxmox task
        (`timeout=0`), and `_create` waits until the clone is complete or has failed.
        """
        vm, is_full = self.vm, is_yes(self.vm.get("full_clone", True))
        node, storage = str(vm.get("node") or ""), str(vm.get("storage") or "") if is_full else ""
        self.progress.write_line(f"cloning the template {template['vmid']} on {template['node']}")
        return self.change_with_module(
            "proxmox_kvm",
            state="present",
            clone=template["name"],
            vmid=template["vmid"],
            node=template["node"],
            newid=vm["vmid"],
            name=vm["name"],
            full=is_full,
            storage=storage or None,
            format=node_limits.disk_format(self.cluster, self._node_of_new_guest(template), storage)
            if storage
            else None,
            target=node if node not in ("", template["node"]) else None,
            pool=vm.get("pool") or None,
            timeout=0,
        )

    def _create_without_template(self, before: Facts, vm: dict[str, Any]) -> dict[str, Any]:
        """Create a VM without a template.

        One HTTP request creates and configures the VM, so the VM has its marker from the start.
        """
        storages = creation.storages_of_new_disks(before, vm)
        formats = {storage: node_limits.disk_format(self.cluster, vm["node"], storage) for storage in storages}
        parameters = creation.creation_parameters(before, vm, formats)
        self.progress.write_line(f"creating a VM without a template on {vm['node']}")
        return self.change_with_module(
            "proxmox_kvm",
            state="present",
            vmid=vm["vmid"],
            node=vm["node"],
            name=vm["name"],
            pool=vm.get("pool") or None,
            ostype=vm.get("os_type") or "l26",
            scsihw="virtio-scsi-single",
            timeout=0,
            **{name: parameters[name] for name in VM_PARAMETERS if name in parameters},
        )

    def _create_container(self, before: Facts, vm: dict[str, Any]) -> dict[str, Any]:
        """Create a container.

        One HTTP request creates and configures the container, so it has its marker from the start.
        """
        parameters = creation.creation_parameters(before, vm)
        guest_login = vm.get("cloud_init") or {}  # a container has no cloud-init, but gets its login from this member
        self.progress.write_line(f"creating a container from {vm['os_template']} on {vm['node']}")
        return self.change_with_module(
            "proxmox",
            state="present",
            update=False,
            vmid=vm["vmid"],
            node=vm["node"],
            hostname=vm["name"],
            pool=vm.get("pool") or None,
            ostemplate=vm["os_template"],
            disk=f"{vm['storage']}:{vm['disk_gib']}",
            storage=vm["storage"],
            unprivileged=True,
            password=guest_login.get("password") or None,
            pubkey="\n".join(cloud_init.ssh_keys(guest_login.get("ssh_public_keys"))) or None,
            timeout=0,
            **{name: parameters[name] for name in CONTAINER_PARAMETERS if name in parameters},
        )
