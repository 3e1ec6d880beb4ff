"""`smith agent-process`: runs the agent. `smith run` starts this command, and `smith --help` does not list it."""

from __future__ import annotations

from typing import Annotated

import typer

from executor.agent.mode import Mode
from executor.cli.run import AgentMode, prepare_process
from executor.composition import run_agent
from executor.settings.settings import Settings


def agent_process(mode: Annotated[AgentMode, typer.Option("--mode", help="How long the agent works.")]) -> None:
    """Run the agent; `smith run` starts this process."""
    raise typer.Exit(run_agent_in_this_process(prepare_process(), mode))


def run_agent_in_this_process(settings: Settings, mode: AgentMode) -> int:
    """Run the agent in this process until the agent stops, and return the exit code for the process."""
    # AgentMode (the type of the option --mode) and Mode (the type that `run_agent` takes) have the same values.
    return run_agent(settings, Mode(mode.value))
