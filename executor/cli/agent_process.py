"""`smith agent-process`: runs the agent. `smith run` starts this command, and `smith --help` does not list it."""

from __future__ import annotations

from typing import Annotated

import typer

from executor.agent.mode import Mode
from executor.cli.run import AgentMode, prepare_process
from executor.composition import run_agent
from executor.settings.settings import Settings


def agent_process(
    mode: Annotated[
        AgentMode,
        typer.Option(
            "--mode",
            help="When the agent ends by itself. serve: never; once: after the jobs of one poll; until-idle: when "
            "FulcrumCore has no more jobs.",
        ),
    ],
) -> None:
    """Run the agent; `smith run` starts this process."""
    settings = prepare_process()  # checks the settings and sets up logging
    raise typer.Exit(run_agent_in_this_process(settings, mode))


def run_agent_in_this_process(settings: Settings, mode: AgentMode) -> int:
    """Run the agent in this process until the agent stops, and return the exit code for the process."""
    # AgentMode (the type of the option --mode) and Mode (the type that `run_agent` takes) have the same values.
    return run_agent(settings, Mode(mode.value))
