"""`smith run`: runs the supervisor, which starts the agent as a child process and restarts it when needed."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from typing import Annotated, Any

import typer

from executor import log
from executor.cli.context import PRIVATE_UMASK, missing_setting_errors, open_settings
from executor.cli.help_text import examples
from executor.cli.lazy import import_function
from executor.errors import SettingsError
from executor.log import get_logger
from executor.processes.supervisor import supervise
from executor.settings.settings import Settings
from executor.version import community_proxmox_version

#: After a stop signal, the agent drains: it claims no more jobs, and waits for its running jobs until the drain timeout
#: (SMITH_DRAIN_TIMEOUT_S). Then it cancels the remaining runs, which have 20 s to end, and sends the last reports
#: within 10 s. The supervisor kills the agent when the drain timeout and this margin have passed.
STOP_MARGIN_S = 60.0
#: The supervisor restarts the agent if the agent's main loop has not reported its progress for this time. Usually the
#: main loop reports its progress several times per second.
STALL_TIMEOUT_S = 120.0


class AgentMode(StrEnum):
    """The mode of the agent, which determines how long the agent works.

    The values equal those of `executor.agent.mode.Mode`, whose module imports so much that `--help` would be slow.
    """

    SERVE = "serve"
    ONCE = "once"
    UNTIL_IDLE = "until-idle"


@examples(
    "smith run                   work until a signal (TERM drains; a second TERM cancels the runs)",
    "smith run --once            poll once, process and report the received jobs, and exit",
    "smith run --until-idle      work until FulcrumCore has no more jobs for this agent",
)
def run(
    once: Annotated[
        bool, typer.Option("--once", help="Poll once, process and report the received jobs, and exit.")
    ] = False,
    until_idle: Annotated[
        bool, typer.Option("--until-idle", help="Exit when FulcrumCore has no more jobs for this agent.")
    ] = False,
    no_supervisor: Annotated[
        bool,
        typer.Option("--no-supervisor", help="Run the agent in this process, for a debugger. Nothing restarts it."),
    ] = False,
) -> None:
    """Run FulcrumCore's jobs in Proxmox.

    A supervisor starts the agent, and restarts it when needed.
    """
    if once and until_idle:
        raise typer.BadParameter("--once and --until-idle cannot be combined")
    mode = AgentMode.SERVE
    if once:
        mode = AgentMode.ONCE
    elif until_idle:
        mode = AgentMode.UNTIL_IDLE
    settings = prepare_process()
    if no_supervisor:
        # The module agent_process is not imported at the top, because it imports the agent's modules. The supervisor
        # does not need these modules, and they use much memory.
        raise typer.Exit(import_function("agent_process", "run_agent_in_this_process")(settings, mode))
    raise typer.Exit(_supervise(settings, mode))


def prepare_process() -> Settings:
    """Set the umask, check the required settings, set up logging, and return the settings. Raises SettingsError."""
    os.umask(PRIVATE_UMASK)
    settings = open_settings()
    errors = missing_setting_errors(settings)
    if community_proxmox_version() is None:
        errors.append("the Ansible collection community.proxmox is not installed: `smith doctor` shows the command")
    if errors:
        raise SettingsError("\n".join(errors))
    log.configure(settings.smith_log_format, settings.smith_log_level)
    log.capture_warnings_and_exceptions()
    return settings


def _supervise(settings: Settings, mode: AgentMode) -> int:
    """Run the supervisor until it ends, and return its exit code."""
    # The command is `python -m executor` and not `smith`: the script `smith` may not be on PATH, and a source checkout
    # has no such script. `-P`: Python must not import modules from the working directory: other users may write there.
    command = [sys.executable, "-P", "-m", "executor", "agent-process", "--mode", mode.value]
    return supervise(
        command,
        env=dict(os.environ),
        stop_timeout_s=settings.smith_drain_timeout_s + STOP_MARGIN_S,
        stall_timeout_s=STALL_TIMEOUT_S,
        log=_log_event,
    )


def _log_event(event: str, *, level: str = "info", **fields: Any) -> None:
    """Log an event of the supervisor, whose module does not import executor.log."""
    getattr(get_logger("executor.processes.supervisor"), level)(event, **fields)
