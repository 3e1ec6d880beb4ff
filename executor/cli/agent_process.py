"""`smith agent-process`: the agent itself, which `smith run` starts and supervises."""

from __future__ import annotations

from typing import Annotated

import typer

from executor.agent.agent import Mode
from executor.cli.run import AgentMode, ready_settings
from executor.composition import run_agent
from executor.settings.settings import Settings


def agent_process(mode: Annotated[AgentMode, typer.Option("--mode", help="How long to work.")]) -> None:
    """Be the agent that `smith run` supervises."""
    raise typer.Exit(be_agent(ready_settings(), mode))


def be_agent(settings: Settings, mode: AgentMode) -> int:
    """Run the agent in this process until it ends; return its exit code."""
    return run_agent(settings, Mode(mode.value))
