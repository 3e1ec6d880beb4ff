"""The configuration of an agent at the simulator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.simulator_world import World

from executor.settings.settings import Settings

SECRET = "proxmox-secret-canary"


Start = Callable[..., Settings]


def no_sleep(_seconds: float) -> None:
    """Fail the test: an agent must not wait if FulcrumCore answers."""
    pytest.fail("waited, although FulcrumCore answers")


def configure(world: World, **members: Any) -> None:
    """Store these members as the agent's configuration at FulcrumCore."""
    world.admin.call("PATCH", f"/agents/{world.ids.agent_id}", {"configuration": members})
