"""Builds the parts of an agent process (dispatcher, worker, lease keeper, critical jobs) from its settings.

Also decides for each critical job whether every agent executes it, or only one of the agents that share a database.
Each part is explained in the module that defines it. For example, `fence.py` explains the fence.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from executor.agent.admission import Admission
from executor.agent.claim import Claimer
from executor.agent.critical_job import CriticalJob
from executor.agent.database_user import DatabaseUseConfirmer
from executor.agent.dispatcher import Dispatcher
from executor.agent.fence import Fence
from executor.agent.heartbeat import Heartbeat
from executor.agent.leases import LeaseKeeper
from executor.agent.meters import Meters
from executor.agent.metrics import VmMetrics
from executor.agent.mode import Mode
from executor.agent.poller import Poller
from executor.agent.pruner import Pruner
from executor.agent.purger import VmPurger
from executor.agent.reaper import Reaper
from executor.agent.reconciler import Reconciler
from executor.agent.refusals import RefusalCounter
from executor.agent.reservation import MappingFinder
from executor.agent.resources import ResourceAllocator
from executor.agent.state import AgentState
from executor.agent.story_writer import StoryWriter
from executor.agent.tenant_usage import TenantUsage
from executor.agent.token_use import TokenUseChecker
from executor.agent.worker import Worker
from executor.database.allocations import AllocationOwner
from executor.drift.inspector import Inspector
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.vault import SecretResolver
from executor.placement.clone_limit import CloneLimit
from executor.placement.placer import Placer
from executor.placement.shared_allocations import SharedAllocations
from executor.proxmox.client import ProxmoxReader
from executor.runs.actions import collection_folder
from executor.runs.request import PlanSettings
from executor.runs.runner import Runner
from executor.runs.warm.compatibility import why_warm_runs_unavailable
from executor.settings.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine


#: Number of lease durations without a renewal after which the allocations of another agent process no longer count.
#: An allocation is memory and cores of a Proxmox node that a run uses.
VANISHED_AFTER_LEASES = 2.0


@dataclass(frozen=True, kw_only=True)
class SharedParts:
    """The objects that most parts of the agent use."""

    settings: Settings
    boot_id: str  #: id of this agent process (not of a boot of the machine), stored as the owner of its jobs
    state: AgentState
    engine: Engine
    fulcrum: FulcrumClient
    proxmox: ProxmoxReader
    refusal_counter: RefusalCounter

    @cached_property
    def database_use_confirmer(self) -> DatabaseUseConfirmer:
        """Confirms that the agent uses the database. The heartbeat and the lease keeper use the same object."""
        return DatabaseUseConfirmer(
            engine=self.engine,
            state=self.state,
            boot_id=self.boot_id,
            cluster=self.settings.smith_cluster,
            lease_s=self.settings.smith_lease_s,
        )


def _build_worker(shared: SharedParts, runner: Runner, clone_limit: CloneLimit) -> Worker:
    settings = shared.settings
    plan_settings = PlanSettings.from_settings(settings, collection_folder())
    return Worker(
        engine=shared.engine,
        fulcrum=shared.fulcrum,
        claimer=Claimer(engine=shared.engine, fulcrum=shared.fulcrum, refusal_counter=shared.refusal_counter),
        mapping_finder=MappingFinder(
            engine=shared.engine,
            proxmox=shared.proxmox,
            settings=settings,
            cluster=plan_settings.cluster,
            tenant_usage=TenantUsage(engine=shared.engine, proxmox=shared.proxmox, settings=settings),
        ),
        resource_allocator=ResourceAllocator(
            placer=Placer(shared.proxmox, settings, shared_allocations=clone_limit.shared_allocations),
            clone_limit=clone_limit,
            plan_settings=plan_settings,
        ),
        runner=runner,
        plan_settings=plan_settings,
        secret_resolver=SecretResolver(shared.fulcrum),
    )


def _build_shared_allocations(shared: SharedParts) -> SharedAllocations | None:
    if shared.engine.dialect.name == "sqlite":
        return None
    settings = shared.settings
    vanished_after_s = VANISHED_AFTER_LEASES * settings.smith_lease_s
    owner = AllocationOwner(boot_id=shared.boot_id, cluster=settings.smith_cluster, vanished_after_s=vanished_after_s)
    return SharedAllocations(engine=shared.engine, owner=owner)


def build_dispatcher(shared: SharedParts, runner: Runner, meters: Meters) -> Dispatcher:
    """Return the dispatcher with its worker."""
    clone_limit = CloneLimit(
        max_limit=shared.settings.smith_clones_per_storage, shared_allocations=_build_shared_allocations(shared)
    )
    return Dispatcher(
        engine=shared.engine,
        worker=_build_worker(shared, runner, clone_limit),
        clone_limit=clone_limit,
        state=shared.state,
        meters=meters,
        settings=shared.settings,
        boot_id=shared.boot_id,
        admission=Admission(uses_warm_runs=uses_warm_runs(shared.settings)),
    )


def build_lease_keeper(shared: SharedParts, dispatcher: Dispatcher, runner: Runner) -> LeaseKeeper:
    """Return the lease keeper of the dispatcher's jobs, with its fence."""
    settings = shared.settings
    fence = Fence(
        dispatcher=dispatcher,
        state=shared.state,
        lease_s=settings.smith_lease_s,
        fence_mode=settings.smith_fence,
        set_runs_deadline=runner.set_runs_deadline,
    )
    return LeaseKeeper(
        engine=shared.engine,
        dispatcher=dispatcher,
        fence=fence,
        reaper=None if shared.engine.dialect.name == "sqlite" else _build_reaper(shared),
        state=shared.state,
        boot_id=shared.boot_id,
        lease_s=shared.settings.smith_lease_s,
        confirm_database_use=shared.database_use_confirmer.confirm,
        store_stories=StoryWriter(engine=shared.engine, runner=runner).store_changed_stories,
    )


def _build_reaper(shared: SharedParts) -> Reaper:
    return Reaper(
        engine=shared.engine,
        state=shared.state,
        boot_id=shared.boot_id,
        lease_s=shared.settings.smith_lease_s,
        get_clock_offset_s=lambda: shared.fulcrum.clock_offset_s,
    )


def build_reconciler(shared: SharedParts) -> Reconciler:
    """Return the reconciler with its inspector. The critical job Reconcile calls the reconciler."""
    inspector = Inspector(
        engine=shared.engine,
        fulcrum=shared.fulcrum,
        proxmox=shared.proxmox,
        cluster=shared.settings.smith_cluster,
        wait=shared.state.stopping.wait,
    )
    return Reconciler(inspector=inspector, state=shared.state, interval_s=shared.settings.smith_reconcile_interval_s)


def _build_poller(shared: SharedParts, mode: Mode) -> Poller:
    return Poller(
        engine=shared.engine,
        fulcrum=shared.fulcrum,
        secret_resolver=SecretResolver(shared.fulcrum),
        state=shared.state,
        job_timeout_s=shared.settings.fulcrum_job_timeout_s,
        interval_s=shared.settings.fulcrum_poll_interval_s,
        polls_only_once=mode is Mode.ONCE,
    )


def _build_purger(shared: SharedParts) -> VmPurger:
    return VmPurger(
        engine=shared.engine,
        fulcrum=shared.fulcrum,
        state=shared.state,
        refusal_counter=shared.refusal_counter,
        cluster=shared.settings.smith_cluster,
        job_timeout_s=shared.settings.fulcrum_job_timeout_s,
        interval_s=shared.settings.smith_prune_interval_s,
        wait=shared.state.stopping.wait,
    )


def _build_vm_metrics(shared: SharedParts) -> VmMetrics:
    return VmMetrics(
        engine=shared.engine,
        fulcrum=shared.fulcrum,
        proxmox=shared.proxmox,
        state=shared.state,
        cluster=shared.settings.smith_cluster,
        interval_s=shared.settings.smith_metrics_interval_s,
    )


def build_critical_jobs(shared: SharedParts, mode: Mode, reconciler: Reconciler, runner: Runner) -> list[CriticalJob]:
    """Return the critical jobs (periodic tasks of the agent) that are not disabled by an interval of 0."""
    settings, state = shared.settings, shared.state
    fulcrum_link, prune_interval_s = state.fulcrum_link, settings.smith_prune_interval_s
    poller = _build_poller(shared, mode)
    token_use = TokenUseChecker(engine=shared.engine, fulcrum=shared.fulcrum)
    heartbeat = Heartbeat(
        fulcrum=shared.fulcrum,
        state=state,
        on_agent_identified=token_use.warn_if_token_used_elsewhere,
        on_first_heartbeat_sent=shared.database_use_confirmer.confirm,
    )

    def may_use_database() -> bool:
        return state.may_use_database

    pruner = Pruner(
        engine=shared.engine,
        settings=settings,
        retry_failed_artifact_moves=runner.artifact_store.retry_failed_artifact_moves,
    )
    jobs = [
        CriticalJob(
            name="Heartbeat",
            interval_s=settings.fulcrum_heartbeat_interval_s,
            run=heartbeat.send,
            wake_requested=state.heartbeat_requested,
            fulcrum_link=fulcrum_link,
        ),
        CriticalJob(
            name="GetPendingJobs",
            interval_s=settings.fulcrum_poll_interval_s,
            run=poller.poll_if_allowed,
            wake_requested=state.poll_requested,
            fulcrum_link=fulcrum_link,
            # Another agent may poll for this agent only in Mode.SERVE, because the other modes count the polls of this
            # agent. On SQLite, no other agent exists, and a row that says which agent polls would cost a write per
            # poll.
            runs_on_each_agent=mode is not Mode.SERVE or shared.engine.dialect.name == "sqlite",
            may_start=lambda: poller.may_poll,
            starts_early_on_request=True,
        ),
        CriticalJob(
            name="PruneCompletedJobs",
            interval_s=prune_interval_s,
            run=pruner.prune,
            run_on_this_machine=pruner.prune_artifacts_of_this_machine,
            runs_on_each_agent=False,
            may_start=may_use_database,
        ),
        CriticalJob(
            name="PurgeDeletedVms",
            interval_s=prune_interval_s,
            run=_build_purger(shared).submit_due_deletions,
            runs_on_each_agent=False,
            may_start=may_use_database,
            fulcrum_link=fulcrum_link,
        ),
        CriticalJob(
            name="ReportMetric",
            interval_s=settings.smith_metrics_interval_s,
            run=_build_vm_metrics(shared).report,
            runs_on_each_agent=False,
            may_start=may_use_database,
        ),
        CriticalJob(
            name="Reconcile",
            interval_s=settings.smith_reconcile_interval_s,
            run=reconciler.check_and_repair,
            runs_on_each_agent=False,
            may_start=may_use_database,
        ),
    ]
    return [job for job in jobs if job.interval_s > 0]


def uses_warm_runs(settings: Settings) -> bool:
    """Return whether SMITH_WARM allows warm runs, and the installed Ansible and its libraries support them.

    A warm run is forked by a server process that has already imported Ansible.
    """
    return settings.smith_warm != "off" and not why_warm_runs_unavailable()
