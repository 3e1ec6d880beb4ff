"""Allocates a node, storage and a clone slot for a create or a migration until its run has ended.

This is the first part of step 5 of a job's processing (ARCHITECTURE.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from executor.database.tables import Job, Mapping
from executor.model import JobResult
from executor.placement.clone_limit import CloneLimit, Permit
from executor.placement.decide import Placement
from executor.placement.placer import PlacementRequest, Placer
from executor.runs import extra_vars
from executor.runs.request import PlanSettings
from executor.runs.vm_properties import read_properties


@dataclass(kw_only=True)
class AllocatedResources:
    """The resources that are allocated to one run."""

    placement: Placement | None = None  #: the chosen node and storage; None when the run needs no placement
    permit: Permit = field(default_factory=Permit)  #: permission of the clone limit to run one more clone

    def note_result(self, result: JobResult) -> None:
        """Pass the run's result to the clone limit, which adapts to it."""
        self.permit.result = result


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Allocates resources: chooses a node and a storage, and waits for a clone slot."""

    placer: Placer
    clone_limit: CloneLimit
    plan_settings: PlanSettings

    @contextmanager
    def allocate(
        self, job: Job, mapping: Mapping, properties: dict[str, Any], *, may_wait: Callable[[], bool]
    ) -> Iterator[AllocatedResources]:
        """Allocate a placement and a clone slot for the length of the block.

        Only a create and a migration need a placement, and only a create needs a clone slot.

        `may_wait` is called repeatedly while all clone slots are in use, and may raise JobError.
        Raises JobError when no node has enough resources, or when `may_wait` returns False.
        """
        with self._allocated_placement(job, mapping, properties) as placement:
            if placement is None or job.action != "create":
                yield AllocatedResources(placement=placement)
                return
            with self.clone_limit.acquire(placement.clone_target, may_wait=may_wait) as permit:
                yield AllocatedResources(placement=placement, permit=permit)

    @contextmanager
    def _allocated_placement(
        self, job: Job, mapping: Mapping, properties: dict[str, Any]
    ) -> Iterator[Placement | None]:
        """Choose a placement for a create or a migration; reserve it for the length of the block."""
        if job.action == "migrate":
            with self.placer.allocate_move(mapping.vmid, mapping.node or "") as placement:
                yield placement
            return
        vm = read_properties(properties) if job.action == "create" else None
        if vm is None or not vm.has_source:
            yield None
            return
        template = extra_vars.os_template(vm.os_template, self.plan_settings.os_templates) if vm.os_template else ""
        request = PlacementRequest(
            vmid=mapping.vmid,
            image=vm.image or "",
            volume=template or vm.iso or "",
            memory_mib=vm.memory_mib,
            cores=vm.cores,
            bridge=extra_vars.bridge_of(vm, self.plan_settings),
            node=self.plan_settings.node,
        )
        with self.placer.allocate(request) as placement:
            yield placement
