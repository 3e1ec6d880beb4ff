"""Builds the parts of an agent process (dispatcher, worker, lease keeper, critical jobs) from its settings.

Also decides for each critical job whether every agent process executes it, or only one of the processes that share a
database.
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
from executor.agent.meters import PrometheusMetrics
from executor.agent.metrics import VmMetrics
from executor.agent.mode import Mode
from executor.agent.poller import Poller
from executor.agent.pruner import Pruner
from executor.agent.purger import VmPurger
from executor.agent.reaper import Reaper
from executor.agent.reconciler import Reconciler
from executor.agent.refusals import Http403Counter
from executor.agent.reservation import MappingFinder
from executor.agent.resources import ResourceAllocator
from executor.agent.state import AgentState
from executor.agent.story_writer import StoryWriter
from executor.agent.tenant_usage import TenantUsage
from executor.agent.token_use import TokenUseChecker
from executor.agent.worker import Worker
from executor.database.allocations import AllocationOwner
from executor.drift.inspector import DriftInspector
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.vault import SecretResolver
from executor.placement.clone_limit import CloneLimit
from executor.placement.placer import Placer
from executor.placement.shared_allocations import SharedAllocations
from executor.proxmox.client import ProxmoxReader
from executor.runs.actions import collection_folder
from executor.runs.request import PlaybookSettings
from executor.runs.runner import Runner
from executor.runs.warm.compatibility import why_warm_runs_unavailable
from executor.settings.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine


#: If another agent process has not renewed its leases for this many lease durations, its allocations no longer count.
#: An allocation is the memory and cores of a Proxmox node that a run needs for its VM.
VANISHED_AFTER_LEASES = 2.0


@dataclass(frozen=True, kw_only=True)
class SharedDependencies:
    """The objects that most parts of the agent use."""

    settings: Settings
    boot_id: str  #: id of this agent process (not of a boot of the machine), stored as the owner of its jobs
    state: AgentState
    engine: Engine
    fulcrum: FulcrumClient
    proxmox: ProxmoxReader
    http_403_counter: Http403Counter  #: counts FulcrumCore's answers 403 for each job and service

    @cached_property
    def database_use_confirmer(self) -> DatabaseUseConfirmer:
        """The object whose method `confirm` stores in the database that this agent uses the database.

        While `confirm` is called regularly, no agent with another id in FulcrumCore uses the database. Several
        processes of one agent may share the database. The heartbeat and the lease keeper call `confirm` of the same
        object.
        """
        return DatabaseUseConfirmer(
            engine=self.engine,
            state=self.state,
            boot_id=self.boot_id,
            cluster=self.settings.smith_cluster,
            lease_s=self.settings.smith_lease_s,
        )


def _build_worker(shared: SharedDependencies, runner: Runner, clone_limit: CloneLimit) -> Worker:
    """Return the worker. `playbook_settings` are the settings that determine a run's playbook and variables."""
    settings = shared.settings
    playbook_settings = PlaybookSettings.from_settings(settings, collection_folder())
    return Worker(
        engine=shared.engine,
        fulcrum=shared.fulcrum,
        claimer=Claimer(engine=shared.engine, fulcrum=shared.fulcrum, http_403_counter=shared.http_403_counter),
        mapping_finder=MappingFinder(
            engine=shared.engine,
            proxmox=shared.proxmox,
            settings=settings,
            cluster=playbook_settings.cluster,
            # Reserves what a job adds to its tenant's usage (for example cores, memory), within the tenant's limits.
            tenant_usage=TenantUsage(engine=shared.engine, proxmox=shared.proxmox, settings=settings),
        ),
        resource_allocator=ResourceAllocator(
            placer=Placer(shared.proxmox, settings, shared_allocations=clone_limit.shared_allocations),
            clone_limit=clone_limit,
            playbook_settings=playbook_settings,
        ),
        runner=runner,
        playbook_settings=playbook_settings,
        secret_resolver=SecretResolver(shared.fulcrum),
    )


def _build_shared_allocations(shared: SharedDependencies) -> SharedAllocations | None:
    """Return access to the allocations of all processes; None on SQLite, where this process is the only one."""
    if shared.engine.dialect.name == "sqlite":
        return None
    settings = shared.settings
    vanished_after_s = VANISHED_AFTER_LEASES * settings.smith_lease_s
    owner = AllocationOwner(boot_id=shared.boot_id, cluster=settings.smith_cluster, vanished_after_s=vanished_after_s)
    return SharedAllocations(engine=shared.engine, owner=owner)


def build_dispatcher(shared: SharedDependencies, runner: Runner, meters: PrometheusMetrics) -> Dispatcher:
    """Return the dispatcher with its worker. `meters` are the Prometheus counters of processed jobs.

    Admission decides before each claim whether this machine has the memory and CPU for one more run.
    """
    clone_limit = CloneLimit(
        # A target of clones is a shared storage, or the local storage of one Proxmox node.
        max_clones_per_target=shared.settings.smith_clones_per_storage,
        shared_allocations=_build_shared_allocations(shared),
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


def build_lease_keeper(shared: SharedDependencies, dispatcher: Dispatcher, runner: Runner) -> LeaseKeeper:
    """Return the lease keeper, which renews the leases of the dispatcher's jobs, with its fence.

    If the leases cannot be renewed, the fence (SMITH_FENCE) ends all runs before the leases expire. This process may be
    suspended and unable to end them. So the fence sets a deadline for all runs at each renewal, and a guard process of
    each run ends the run at the deadline. After each renewal, the lease keeper stores the story of each run: the
    summary of what the run has done.
    """
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
        # The reaper takes jobs with expired leases from other processes. On SQLite, this process is the only one.
        reaper=None if shared.engine.dialect.name == "sqlite" else _build_reaper(shared),
        state=shared.state,
        boot_id=shared.boot_id,
        lease_s=shared.settings.smith_lease_s,
        confirm_database_use=shared.database_use_confirmer.confirm,
        store_stories=StoryWriter(engine=shared.engine, runner=runner).store_changed_stories,
    )


def _build_reaper(shared: SharedDependencies) -> Reaper:
    return Reaper(
        engine=shared.engine,
        state=shared.state,
        boot_id=shared.boot_id,
        lease_s=shared.settings.smith_lease_s,
        # A job whose run may still be in progress is reaped only after the job's deadline. Deadlines are times of
        # FulcrumCore's clock.
        get_fulcrum_clock_offset_s=lambda: shared.fulcrum.clock_offset_s,
    )


def build_reconciler(shared: SharedDependencies) -> Reconciler:
    """Return the reconciler with its inspector, which finds drift. The critical job Reconcile calls the reconciler.

    Drift is a difference between the mappings in the database, Proxmox and FulcrumCore.
    """
    inspector = DriftInspector(
        engine=shared.engine,
        fulcrum=shared.fulcrum,
        proxmox=shared.proxmox,
        cluster=shared.settings.smith_cluster,
        # If a search does not find a VM, the inspector waits, then searches again. The wait ends if the agent stops.
        wait=shared.state.stopping.wait,
    )
    return Reconciler(inspector=inspector, state=shared.state, interval_s=shared.settings.smith_reconcile_interval_s)


def _build_poller(shared: SharedDependencies, mode: Mode) -> Poller:
    return Poller(
        engine=shared.engine,
        fulcrum=shared.fulcrum,
        secret_resolver=SecretResolver(shared.fulcrum),
        state=shared.state,
        job_timeout_s=shared.settings.fulcrum_job_timeout_s,
        interval_s=shared.settings.fulcrum_poll_interval_s,
        polls_only_once=mode is Mode.ONCE,
    )


def _build_purger(shared: SharedDependencies) -> VmPurger:
    return VmPurger(
        engine=shared.engine,
        fulcrum=shared.fulcrum,
        state=shared.state,
        http_403_counter=shared.http_403_counter,
        cluster=shared.settings.smith_cluster,
        job_timeout_s=shared.settings.fulcrum_job_timeout_s,
        interval_s=shared.settings.smith_prune_interval_s,
        # The wait between two reads of a service for which FulcrumCore answers 403; ends early if the agent stops.
        wait=shared.state.stopping.wait,
    )


def _build_vm_metrics(shared: SharedDependencies) -> VmMetrics:
    return VmMetrics(
        engine=shared.engine,
        fulcrum=shared.fulcrum,
        proxmox=shared.proxmox,
        state=shared.state,
        cluster=shared.settings.smith_cluster,
        interval_s=shared.settings.smith_metrics_interval_s,
    )


def build_critical_jobs(
    shared: SharedDependencies, mode: Mode, reconciler: Reconciler, runner: Runner
) -> list[CriticalJob]:
    """Return the critical jobs (periodic tasks of the agent) that are not disabled by an interval of 0.

    `fulcrum_link` records whether FulcrumCore answers and accepts the token. A critical job without this argument
    records no failure in it. `may_use_database` is False while an agent with another id uses the database.
    """
    settings, state = shared.settings, shared.state
    fulcrum_link, prune_interval_s = state.fulcrum_link, settings.smith_prune_interval_s
    poller = _build_poller(shared, mode)
    token_use_checker = TokenUseChecker(engine=shared.engine, fulcrum=shared.fulcrum)
    heartbeat = Heartbeat(
        fulcrum=shared.fulcrum,
        state=state,
        # Called once, after FulcrumCore has sent this agent's id. An installation is all processes with one database.
        on_agent_identified=token_use_checker.warn_if_other_installation_uses_token,
        on_first_heartbeat_sent=shared.database_use_confirmer.confirm,
    )

    def may_use_database() -> bool:
        return state.may_use_database

    pruner = Pruner(
        engine=shared.engine,
        settings=settings,
        # Moves the artifacts that could not be moved from the run folder to the data folder when their run ended.
        retry_artifact_moves=runner.artifact_store.retry_artifact_moves,
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
            # `poll_if_allowed` checks `may_poll` itself. `may_start` below checks it, too, but is ignored if
            # `is_executed_by_each_process` is true.
            run=poller.poll_if_allowed,
            wake_requested=state.poll_requested,
            fulcrum_link=fulcrum_link,
            # In Mode.SERVE, one agent process polls for all processes that share the database. In the other modes, this
            # process ends after its own polls, so it must poll itself. On SQLite, this process is the only one.
            is_executed_by_each_process=mode is not Mode.SERVE or shared.engine.dialect.name == "sqlite",
            may_start=lambda: poller.may_poll,
            # When `wake_requested` is set, this process polls at once, even if another process has just polled.
            ignores_period_if_requested=True,
        ),
        CriticalJob(
            name="PruneCompletedJobs",
            interval_s=prune_interval_s,
            run=pruner.prune,
            run_if_other_process_executes=pruner.prune_artifacts_of_this_machine,
            is_executed_by_each_process=False,
            may_start=may_use_database,
        ),
        CriticalJob(
            name="PurgeDeletedVms",
            interval_s=prune_interval_s,
            # If the grace period (SMITH_DELETE_GRACE_S) of a deleted service has ended, adds a job to delete its VM.
            run=_build_purger(shared).add_jobs_to_delete_expired_vms,
            is_executed_by_each_process=False,
            may_start=may_use_database,
            fulcrum_link=fulcrum_link,
        ),
        CriticalJob(
            name="ReportMetric",
            interval_s=settings.smith_metrics_interval_s,
            run=_build_vm_metrics(shared).report,
            is_executed_by_each_process=False,
            may_start=may_use_database,
        ),
        CriticalJob(
            name="Reconcile",
            interval_s=settings.smith_reconcile_interval_s,
            run=reconciler.check_and_repair,
            is_executed_by_each_process=False,
            may_start=may_use_database,
        ),
    ]
    return [job for job in jobs if job.interval_s > 0]


def uses_warm_runs(settings: Settings) -> bool:
    """Return whether SMITH_WARM allows warm runs, and the installed Ansible and its libraries support them.

    A warm run is forked by a server process that has already imported Ansible.
    """
    return settings.smith_warm != "off" and not why_warm_runs_unavailable()
