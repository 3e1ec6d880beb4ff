"""Builds the agent from the settings, connects the HTTP pages to it, and runs it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from executor.agent.admission import Admission
from executor.agent.agent import Agent, Mode, new_boot_id
from executor.agent.claim import Claimer
from executor.agent.dispatcher import Dispatcher
from executor.agent.heartbeat import Heartbeat
from executor.agent.leases import LeaseKeeper
from executor.agent.live_secrets import LiveSecrets
from executor.agent.machine import default_concurrency
from executor.agent.meters import Meters
from executor.agent.metrics import VmMetrics
from executor.agent.monitor import Monitor
from executor.agent.poller import Poller
from executor.agent.pruner import Pruner
from executor.agent.purger import VmPurger
from executor.agent.reconciler import Reconciler
from executor.agent.reporter import Reporter
from executor.agent.reservation import Reservations
from executor.agent.resources import Resources
from executor.agent.scheduler import CriticalJob, Scheduler
from executor.agent.state import AgentState
from executor.agent.worker import Worker
from executor.database.engine import open_engine
from executor.drift.inspector import Inspector
from executor.errors import EXIT_FAILURE
from executor.fulcrum import remote_config
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.vault import SecretResolver
from executor.log import get_logger
from executor.placement.clone_limit import CloneLimit
from executor.placement.placer import Placer
from executor.processes import process_tree
from executor.proxmox.client import ProxmoxReader
from executor.runs.actions import ansible_home
from executor.runs.request import Site
from executor.runs.runner import Runner, RunnerPaths
from executor.runs.warm.compatibility import why_untested
from executor.settings.settings import Settings, load_settings
from executor.web.agent_view import AgentView
from executor.web.server import serving

if TYPE_CHECKING:
    from sqlalchemy import Engine

log = get_logger(__name__)


def run_agent(settings: Settings, mode: Mode) -> int:
    """Run one agent and return its exit code. The supervisor calls this in a process of its own."""
    process_tree.set_undumpable()
    live = LiveSecrets(settings, load_settings)
    fulcrum = _fulcrum_client(settings, live)
    with serving(settings) as handle:
        settings = remote_config.wait_for_remote_settings(settings, fulcrum, on_wait=handle.note_waiting)
        settings = _with_concurrency(settings)
        if settings.smith_remote_config:
            live.overlay_with(settings, lambda fresh: remote_config.fetch_remote_settings(fresh, fulcrum))
        for setting, danger in settings.insecurities():
            log.warning("insecure_transport", setting=setting, danger=danger)
        agent, view = _build(settings, live, fulcrum, mode)
        handle.attach(view)
        code = agent.run()
    sys.stdout.flush()
    if code == EXIT_FAILURE:
        os._exit(code)  # a job that cannot be stopped must not keep the process alive: the supervisor ends the rest
    return code


@dataclass(frozen=True, kw_only=True)
class _Shared:
    """What most parts of the agent need."""

    settings: Settings
    boot_id: str
    state: AgentState
    engine: Engine
    fulcrum: FulcrumClient
    proxmox: ProxmoxReader


def _build(settings: Settings, live: LiveSecrets, fulcrum: FulcrumClient, mode: Mode) -> tuple[Agent, AgentView]:
    """Return the agent and what the HTTP pages read of it."""
    engine = open_engine(settings.smith_database_url)
    runner = _runner(settings, live)
    proxmox = ProxmoxReader(live.connection(), reload=live.renewed_connection)
    shared = _Shared(
        settings=settings,
        boot_id=new_boot_id(),
        state=AgentState(),
        engine=engine,
        fulcrum=fulcrum,
        proxmox=proxmox,
    )
    reconciler, meters = _reconciler(shared), Meters()
    scheduler = Scheduler(engine, _critical_jobs(shared, mode, reconciler))
    monitor = Monitor(settings=settings, state=shared.state, scheduler=scheduler)
    dispatcher = _dispatcher(shared, runner, meters)
    agent = Agent(
        settings=settings,
        mode=mode,
        boot_id=shared.boot_id,
        state=shared.state,
        engine=engine,
        secrets=live,
        proxmox=proxmox,
        runner=runner,
        reporter=Reporter(engine=engine, fulcrum=fulcrum, state=shared.state),
        dispatcher=dispatcher,
        leases=_leases(shared, dispatcher),
        scheduler=scheduler,
        monitor=monitor,
    )
    view = AgentView(
        boot_id=shared.boot_id,
        settings=settings,
        state=shared.state,
        scheduler=scheduler,
        engine=engine,
        proxmox=proxmox,
        meters=meters,
        memory_mib=monitor.memory_mib,
        drift=reconciler.counts,
    )
    return agent, view


# --- parts --------------------------------------------------------------------------------------------------------


def _worker(shared: _Shared, runner: Runner, clone_limit: CloneLimit) -> Worker:
    settings = shared.settings
    site = Site.from_settings(settings, ansible_home())
    return Worker(
        engine=shared.engine,
        fulcrum=shared.fulcrum,
        claimer=Claimer(engine=shared.engine, fulcrum=shared.fulcrum),
        reservations=Reservations(
            engine=shared.engine, proxmox=shared.proxmox, settings=settings, cluster=site.cluster
        ),
        resources=Resources(placer=Placer(shared.proxmox, settings), clone_limit=clone_limit, site=site),
        runner=runner,
        site=site,
        secrets=SecretResolver(shared.fulcrum),
    )


def _dispatcher(shared: _Shared, runner: Runner, meters: Meters) -> Dispatcher:
    clone_limit = CloneLimit(limit=shared.settings.smith_clones_per_storage)
    return Dispatcher(
        engine=shared.engine,
        worker=_worker(shared, runner, clone_limit),
        clone_limit=clone_limit,
        state=shared.state,
        meters=meters,
        settings=shared.settings,
        boot_id=shared.boot_id,
        admission=Admission(is_warm=_runs_warm(shared.settings)),
    )


def _leases(shared: _Shared, dispatcher: Dispatcher) -> LeaseKeeper:
    return LeaseKeeper(
        engine=shared.engine,
        dispatcher=dispatcher,
        state=shared.state,
        boot_id=shared.boot_id,
        lease_s=shared.settings.smith_lease_s,
    )


def _reconciler(shared: _Shared) -> Reconciler:
    inspector = Inspector(
        engine=shared.engine,
        fulcrum=shared.fulcrum,
        proxmox=shared.proxmox,
        cluster=shared.settings.smith_cluster,
        wait=shared.state.stopping.wait,
    )
    return Reconciler(inspector=inspector, state=shared.state, interval_s=shared.settings.smith_reconcile_interval_s)


def _poller(shared: _Shared, mode: Mode) -> Poller:
    return Poller(
        engine=shared.engine,
        fulcrum=shared.fulcrum,
        state=shared.state,
        job_timeout_s=shared.settings.fulcrum_job_timeout_s,
        interval_s=shared.settings.fulcrum_poll_interval_s,
        only_once=mode is Mode.ONCE,
    )


def _purger(shared: _Shared) -> VmPurger:
    return VmPurger(
        engine=shared.engine,
        fulcrum=shared.fulcrum,
        state=shared.state,
        cluster=shared.settings.smith_cluster,
        job_timeout_s=shared.settings.fulcrum_job_timeout_s,
    )


def _metrics(shared: _Shared) -> VmMetrics:
    return VmMetrics(
        engine=shared.engine,
        fulcrum=shared.fulcrum,
        proxmox=shared.proxmox,
        state=shared.state,
        interval_s=shared.settings.smith_metrics_interval_s,
    )


def _critical_jobs(shared: _Shared, mode: Mode, reconciler: Reconciler) -> list[CriticalJob]:
    """Return the critical jobs, without those whose interval is 0 (off)."""
    settings, state = shared.settings, shared.state
    link, prune_interval_s = state.fulcrum, settings.smith_prune_interval_s
    jobs = [
        CriticalJob(
            name="Heartbeat",
            interval_s=settings.fulcrum_heartbeat_interval_s,
            run=Heartbeat(fulcrum=shared.fulcrum, state=state).beat,
            link=link,
        ),
        CriticalJob(
            name="GetPendingJobs",
            interval_s=settings.fulcrum_poll_interval_s,
            run=_poller(shared, mode).turn,
            wake=state.poll_wanted,
            link=link,
        ),
        CriticalJob(
            name="PruneCompletedJobs",
            interval_s=prune_interval_s,
            run=Pruner(engine=shared.engine, settings=settings).prune,
            for_each_node=False,
        ),
        CriticalJob(
            name="PurgeDeletedVms",
            interval_s=prune_interval_s,
            run=_purger(shared).turn,
            for_each_node=False,
            link=link,
        ),
        CriticalJob(
            name="ReportMetric",
            interval_s=settings.smith_metrics_interval_s,
            run=_metrics(shared).report,
            for_each_node=False,
        ),
        CriticalJob(
            name="Reconcile",
            interval_s=settings.smith_reconcile_interval_s,
            run=reconciler.turn,
            for_each_node=False,
        ),
    ]
    return [job for job in jobs if job.interval_s > 0]


def _runner(settings: Settings, live: LiveSecrets) -> Runner:
    settings.require_proxmox()
    paths = RunnerPaths(
        ansible_home=ansible_home(), run_dir=settings.smith_run_dir, artifacts_dir=settings.smith_data_dir / "artifacts"
    )
    return Runner(paths, live.credentials, ca_bundle=settings.proxmox_ca_bundle)


def _fulcrum_client(settings: Settings, live: LiveSecrets) -> FulcrumClient:
    settings.require_fulcrum()
    return FulcrumClient(
        settings.fulcrum_api_url,
        live.fulcrum_token,
        ca_bundle=settings.fulcrum_ca_bundle,
        verify_tls=settings.fulcrum_verify_tls,
        on_auth_failure=live.reload_after_refusal,
    )


def _runs_warm(settings: Settings) -> bool:
    """True when warm runs are wanted and this machine's versions support them."""
    return settings.smith_warm != "off" and not why_untested()


def _with_concurrency(settings: Settings) -> Settings:
    """Return the settings with SMITH_CONCURRENCY chosen for this machine where it is 0."""
    if settings.smith_concurrency:
        return settings
    return settings.model_copy(update={"smith_concurrency": default_concurrency(is_warm=_runs_warm(settings))})
