"""Builds the agent and its HTTP server from the settings, and runs both."""

from __future__ import annotations

import os
import sys

from executor.agent.agent import Agent, Mode, new_boot_id
from executor.agent.machine import default_concurrency
from executor.agent.meters import Meters
from executor.agent.monitor import Monitor
from executor.agent.parts import Shared, build_dispatcher, build_leases, build_reconciler, critical_jobs, runs_warm
from executor.agent.reloadable_secrets import ReloadableSecrets
from executor.agent.reporter import Reporter
from executor.agent.scheduler import Scheduler
from executor.agent.state import AgentState
from executor.database.engine import open_engine
from executor.errors import EXIT_FAILURE
from executor.fulcrum import remote_config
from executor.fulcrum.client import FulcrumClient
from executor.log import get_logger
from executor.processes import process_tree
from executor.proxmox.client import ProxmoxReader
from executor.runs.actions import ansible_home
from executor.runs.runner import Runner, RunnerPaths
from executor.settings.settings import Settings, load_settings
from executor.web.agent_view import AgentView
from executor.web.server import serving

log = get_logger(__name__)


def run_agent(settings: Settings, mode: Mode) -> int:
    """Run the agent until it ends; return its exit code. The agent process calls this function."""
    process_tree.set_undumpable()
    secrets = ReloadableSecrets(settings, load_settings)
    fulcrum = _fulcrum_client(settings, secrets)
    with serving(settings) as handle:
        settings = remote_config.wait_for_remote_settings(settings, fulcrum, on_wait=handle.note_waiting)
        settings = _with_concurrency(settings)
        if settings.smith_remote_config:
            secrets.use_remote_settings(settings, lambda fresh: remote_config.fetch_remote_settings(fresh, fulcrum))
        for setting, danger in settings.insecure_settings():
            log.warning("insecure_transport", setting=setting, danger=danger)
        agent, view = _build(settings, secrets, fulcrum, mode)
        handle.attach(view)
        code = agent.run()
    sys.stdout.flush()
    if code == EXIT_FAILURE:
        # The threads of jobs that did not stop would keep this process alive. The supervisor ends these jobs' runs.
        os._exit(code)
    return code


def _build(
    settings: Settings, secrets: ReloadableSecrets, fulcrum: FulcrumClient, mode: Mode
) -> tuple[Agent, AgentView]:
    """Build the agent, and the view of it that the HTTP pages read."""
    engine = open_engine(settings.smith_database_url)
    runner = _runner(settings, secrets)
    proxmox = ProxmoxReader(secrets.connection(), reload=secrets.connection_after_refusal)
    shared = Shared(
        settings=settings,
        boot_id=new_boot_id(),
        state=AgentState(),
        engine=engine,
        fulcrum=fulcrum,
        proxmox=proxmox,
    )
    reconciler, meters = build_reconciler(shared), Meters()
    scheduler = Scheduler(engine, critical_jobs(shared, mode, reconciler))
    monitor = Monitor(settings=settings, state=shared.state, scheduler=scheduler)
    dispatcher = build_dispatcher(shared, runner, meters)
    agent = Agent(
        settings=settings,
        mode=mode,
        boot_id=shared.boot_id,
        state=shared.state,
        engine=engine,
        secrets=secrets,
        proxmox=proxmox,
        runner=runner,
        reporter=Reporter(engine=engine, fulcrum=fulcrum, state=shared.state),
        dispatcher=dispatcher,
        leases=build_leases(shared, dispatcher),
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


def _runner(settings: Settings, secrets: ReloadableSecrets) -> Runner:
    settings.require_proxmox()
    paths = RunnerPaths(
        ansible_home=ansible_home(), run_dir=settings.smith_run_dir, artifacts_dir=settings.smith_data_dir / "artifacts"
    )
    return Runner(paths, secrets.credentials, ca_bundle=settings.proxmox_ca_bundle)


def _fulcrum_client(settings: Settings, secrets: ReloadableSecrets) -> FulcrumClient:
    settings.require_fulcrum()
    return FulcrumClient(
        settings.fulcrum_api_url,
        secrets.fulcrum_token,
        ca_bundle=settings.fulcrum_ca_bundle,
        verify_tls=settings.fulcrum_verify_tls,
        on_auth_failure=secrets.reload_after_refusal,
    )


def _with_concurrency(settings: Settings) -> Settings:
    """Return the settings. When SMITH_CONCURRENCY is 0, it is replaced by a number that suits this machine."""
    if settings.smith_concurrency:
        return settings
    return settings.model_copy(update={"smith_concurrency": default_concurrency(is_warm=runs_warm(settings))})
