"""Allocates resources to a run until the run ends: a node, a clone slot, memory and cores of the node.

This is the first part of step 5 of a job's processing (ARCHITECTURE.md). A placement is the chosen node of a new
or migrated VM. The placement of a new VM also contains the template to clone, and the storage that gets the clone
(`clone_target`). CloneLimit limits how many clones run at the same time on a storage. A clone slot (a CloneSlot object)
is the permission to run one clone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from executor.database.tables.jobs import Job
from executor.database.tables.mappings import Mapping
from executor.model import JobResult
from executor.placement.choice import PlacementRequest
from executor.placement.clone_limit import CloneLimit, CloneSlot
from executor.placement.decide import Placement
from executor.placement.placer import Placer
from executor.runs import extra_vars
from executor.runs.request import PlaybookSettings
from executor.runs.vm_properties import read_properties
from executor.shared.progress_texts import VERIFYING_PREFIX


@dataclass(kw_only=True)
class AllocatedResources:
    """The resources that are allocated to one run."""

    placement: Placement | None = None  #: None when the run needs no placement
    clone_slot: CloneSlot = field(default_factory=CloneSlot)  #: unused when the run needs no clone slot

    def set_result_for_clone_limit(self, result: JobResult) -> None:
        """Store the run's result in the clone slot. CloneLimit adapts its limit when `allocate` ends."""
        self.clone_slot.result = result

    def free_clone_slot_if_clone_ended(self, progress_text: str) -> None:
        """Free the clone slot when the run starts to verify the clone, because Proxmox has then finished the clone.

        `progress_text` is the text with which the run's playbook reports its present step.
        """
        if progress_text.startswith(VERIFYING_PREFIX):
            self.clone_slot.mark_clone_ended()


@dataclass(frozen=True, kw_only=True)
class ResourceAllocator:
    """Chooses a placement for a run, and waits for a clone slot."""

    placer: Placer
    clone_limit: CloneLimit
    playbook_settings: PlaybookSettings  #: the settings that determine a run's playbook and variables

    @contextmanager
    def allocate(
        self, job: Job, mapping: Mapping, properties: dict[str, Any], *, may_wait: Callable[[], bool]
    ) -> Iterator[AllocatedResources]:
        """Allocate the resources that the job needs, while the block runs.

        A create needs a placement and a clone slot, even if it clones nothing (a create from an ISO image or an OS
        template). A migration needs a placement. An update that makes the VM larger needs memory and cores on the VM's
        node. While all clone slots are in use, and while Proxmox does not answer, `may_wait` is called repeatedly; it
        returns whether to wait longer. Raises JobError when `may_wait` returns False or raises JobError, and when no
        node has enough resources.
        """
        with self._allocate_placement(job, mapping, properties, may_wait) as placement:
            if placement is None or job.action != "create":
                yield AllocatedResources(placement=placement)
                return
            with self.clone_limit.acquire_slot(
                placement.clone_target, may_wait=may_wait, vmid=mapping.vmid
            ) as clone_slot:
                yield AllocatedResources(placement=placement, clone_slot=clone_slot)

    @contextmanager
    def _allocate_placement(
        self, job: Job, mapping: Mapping, properties: dict[str, Any], may_wait: Callable[[], bool]
    ) -> Iterator[Placement | None]:
        """Yield the placement of a create or a migration. For an update, yield None.

        For an update that makes the VM larger, the memory and cores of its whole new size are allocated. While the
        block runs, the node's used memory and cores include this allocation instead of the VM's present size.
        """
        if job.action == "migrate":
            # The placer uses `mapping.node` only if Proxmox does not list the VM.
            with self.placer.allocate_for_migration(mapping.vmid, mapping.node or "", may_wait=may_wait) as placement:
                yield placement
            return
        if job.action == "update":
            new_size = read_properties(properties)
            with self.placer.allocate_for_growth(
                mapping.vmid, new_size.memory_mib, new_size.total_cores, may_wait=may_wait
            ):
                yield None
            return
        vm = read_properties(properties) if job.action == "create" else None
        if vm is None or not vm.has_source:  # a create without a source (such as an image) fails in its run
            yield None
            return
        os_template_volume = ""
        if vm.os_template:
            os_template_volume = extra_vars.find_os_template(vm.os_template, self.playbook_settings)
        request = PlacementRequest(
            vmid=mapping.vmid,
            image=vm.image or "",
            # The chosen node must have this volume: the container's OS template or the VM's ISO image.
            volume=os_template_volume or vm.iso or "",
            memory_mib=vm.memory_mib,
            cores=vm.total_cores,
            bridge=extra_vars.bridge_of_first_nic(vm, self.playbook_settings),
            node=self.playbook_settings.node,  # the only node in PROXMOX_NODES; '' if the placer chooses the node
        )
        with self.placer.allocate_for_new_vm(request, may_wait=may_wait) as placement:
            yield placement
