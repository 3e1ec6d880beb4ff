"""Builds the agent and its HTTP server from the settings, and runs both.

The boot id is a random id that this agent process gets at its start. In the database, a job's row has the boot id of
the agent process that owns the job.
"""

from __future__ import annotations

import os
import sys

from executor.agent.agent import Agent, new_boot_id
from executor.agent.machine import default_concurrency
from executor.agent.meters import PrometheusMetrics
from executor.agent.mode import AgentEndCheck, Mode
from executor.agent.monitor import Monitor
from executor.agent.parts import (
    SharedDependencies,
    build_critical_jobs,
    build_dispatcher,
    build_lease_keeper,
    build_reconciler,
    uses_warm_runs,
)
from executor.agent.refusals import Http403Counter
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
from executor.runs.actions import collection_folder
from executor.runs.runner import Runner, RunnerPaths
from executor.settings.settings import Settings, load_settings
from executor.web.agent_view import AgentView
from executor.web.server import serving_pages

log = get_logger(__name__)


def run_agent(settings: Settings, mode: Mode) -> int:
    """Run the agent until it ends; return its exit code. Called in the agent process, a child of the supervisor.

    `mode` says whether the agent ends by itself: never, after one poll, or when FulcrumCore has no more jobs for it.
    """
    process_tree.forbid_dumps_and_debuggers()
    secrets = ReloadableSecrets(settings, load_settings)
    fulcrum = _build_fulcrum_client(settings, secrets)
    # The web pages read the agent's state through `agent_handle`. Before the call of `attach`, they have no agent to
    # read, and the page /readyz shows why the start waits for FulcrumCore.
    with serving_pages(settings) as agent_handle:
        # If SMITH_REMOTE_CONFIG is true, FulcrumCore supplies some settings (the remote settings).
        settings = remote_config.wait_for_remote_settings(settings, fulcrum, on_wait=agent_handle.record_wait_reason)
        settings = _with_automatic_concurrency(settings)
        if settings.smith_remote_config:
            # The remote settings may contain secrets, so each reload of the secrets reads the remote settings again,
            # and adds them to the settings of this machine (`local_settings`).
            secrets.use_remote_settings(
                settings,
                add_remote_settings=lambda local_settings: remote_config.fetch_remote_settings(local_settings, fulcrum),
            )
        for setting, danger in settings.insecure_settings():
            log.warning("insecure_transport", setting=setting, danger=danger)
        agent, view = _build_agent_and_view(settings, secrets, fulcrum, mode)
        agent_handle.attach(view)
        exit_code = agent.run()
    sys.stdout.flush()
    if exit_code == EXIT_FAILURE:
        # `agent.run` returns EXIT_FAILURE if some jobs did not end. The threads of these jobs would keep this process
        # alive. The supervisor, which is the parent of this process, ends the runs of these jobs.
        os._exit(exit_code)
    return exit_code


def _build_agent_and_view(
    settings: Settings, secrets: ReloadableSecrets, fulcrum: FulcrumClient, mode: Mode
) -> tuple[Agent, AgentView]:
    """Build the agent and the AgentView, from which the web pages read the agent's state."""
    engine = open_engine(settings.smith_database_url)
    runner = _build_runner(settings, secrets)
    proxmox = ProxmoxReader(secrets.proxmox_connection(), reload_connection=secrets.reload_proxmox_connection)
    shared = SharedDependencies(
        settings=settings,
        boot_id=new_boot_id(),
        # False on PostgreSQL until this process has checked that no other agent uses the database. Agent processes with
        # the same token count as one agent.
        state=AgentState(may_use_database=engine.dialect.name == "sqlite"),
        engine=engine,
        fulcrum=fulcrum,
        proxmox=proxmox,
        # When FulcrumCore refuses a request about a job or service with 403, this object counts the refusal, and reads
        # the job or service to find out whether it is gone: deleted, or given to another agent.
        http_403_counter=Http403Counter(fulcrum=fulcrum),
    )
    reconciler = build_reconciler(shared)  # compares the database, Proxmox and FulcrumCore
    meters = PrometheusMetrics()  # counts and times the attempts to process jobs
    scheduler = Scheduler(engine, build_critical_jobs(shared, mode, reconciler, runner), shared.boot_id)
    # The monitor checks the limits of this process, such as SMITH_MAX_JOBS, and restarts critical jobs that hang.
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
        reporter=Reporter(engine=engine, fulcrum=fulcrum, state=shared.state, http_403_counter=shared.http_403_counter),
        dispatcher=dispatcher,
        lease_keeper=build_lease_keeper(shared, dispatcher, runner),
        scheduler=scheduler,
        monitor=monitor,
        agent_end_check=AgentEndCheck(mode=mode, engine=engine, state=shared.state, dispatcher=dispatcher),
    )
    view = AgentView(
        boot_id=shared.boot_id,
        settings=settings,
        state=shared.state,
        scheduler=scheduler,
        engine=engine,
        proxmox=proxmox,
        meters=meters,
        measure_memory_mib=monitor.memory_mib,  # of this process and all its descendants
        # A finding is a difference between the database, the VMs in Proxmox and the services in FulcrumCore. The open
        # findings are those of the last check.
        count_drift_by_kind=reconciler.count_open_findings,
        list_drift_findings=reconciler.open_findings,
    )
    return agent, view


def _build_runner(settings: Settings, secrets: ReloadableSecrets) -> Runner:
    settings.require_proxmox_settings()
    paths = RunnerPaths(
        collection_folder=collection_folder(),
        run_dir=settings.smith_run_dir,
        artifacts_dir=settings.smith_data_dir / "artifacts",
        data_dir=settings.smith_data_dir,
    )
    return Runner(paths, secrets.proxmox_credentials, ca_bundle=settings.proxmox_ca_bundle)


def _build_fulcrum_client(settings: Settings, secrets: ReloadableSecrets) -> FulcrumClient:
    settings.require_fulcrum_settings()
    return FulcrumClient(
        settings.fulcrum_api_url,
        secrets.fulcrum_token,
        ca_bundle=settings.fulcrum_ca_bundle,
        verify_tls=settings.fulcrum_verify_tls,
        on_auth_failure=secrets.reload_after_refused_secret,
    )


def _with_automatic_concurrency(settings: Settings) -> Settings:
    """Return the settings. If SMITH_CONCURRENCY is 0, it is replaced by a number that suits this machine.

    The number can be larger for warm runs. A warm run is forked from a process that has already loaded Ansible, so it
    needs less memory and CPU time.
    """
    if settings.smith_concurrency:
        return settings
    concurrency = default_concurrency(uses_warm_runs=uses_warm_runs(settings))
    return settings.model_copy(update={"smith_concurrency": concurrency})
