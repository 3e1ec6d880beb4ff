"""Step 5 of 7, before the run: holds what a create or a migration needs from the cluster while its run lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from executor.database.tables import Job, Mapping
from executor.placement.clone_limit import CloneLimit, Permit
from executor.placement.decide import Placement
from executor.placement.placer import PlacementRequest, Placer
from executor.runs import extra_vars
from executor.runs.request import PlanSettings
from executor.runs.vm_properties import read_properties


@dataclass(kw_only=True)
class HeldResources:
    """What one run holds."""

    placement: Placement | None = None  #: the chosen node and storage; None: the VM stays where it is
    permit: Permit = field(default_factory=Permit)  #: of the clone limit; its `result` is set after the run


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Chooses a node and waits for a clone slot."""

    placer: Placer
    clone_limit: CloneLimit
    plan_settings: PlanSettings

    @contextmanager
    def hold(
        self, job: Job, mapping: Mapping, properties: dict[str, Any], *, may_wait: Callable[[], bool]
    ) -> Iterator[HeldResources]:
        """Hold a placement and a clone slot for the length of the block; most actions need neither.

        Raises JobError when no node has room, or when `may_wait` answers False or raises while all slots are taken.
        """
        with self._placed(job, mapping, properties) as placement:
            if placement is None or job.action != "create":
                yield HeldResources(placement=placement)
                return
            with self.clone_limit.acquire(placement.clone_target, may_wait=may_wait) as permit:
                yield HeldResources(placement=placement, permit=permit)

    @contextmanager
    def _placed(self, job: Job, mapping: Mapping, properties: dict[str, Any]) -> Iterator[Placement | None]:
        if job.action == "migrate":
            with self.placer.allocate_move(mapping.vmid, mapping.node or "") as placement:
                yield placement
            return
        wanted = read_properties(properties) if job.action == "create" else None
        if wanted is None or not wanted.has_source:
            yield None
            return
        template = (
            extra_vars.os_template(wanted.os_template, self.plan_settings.os_templates) if wanted.os_template else ""
        )
        request = PlacementRequest(
            vmid=mapping.vmid,
            image=wanted.image or "",
            volume=template or wanted.iso or "",
            memory_mib=wanted.memory_mib,
            cores=wanted.cores,
            bridge=extra_vars.bridge_of(wanted, self.plan_settings),
            node=self.plan_settings.node,
        )
        with self.placer.allocate(request) as placement:
            yield placement
