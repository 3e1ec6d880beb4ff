"""Finds files in the folder `deploy`, which is in the checkout or in the installed package."""

from __future__ import annotations

import importlib.resources
from pathlib import Path


def find_deploy_file(name: str) -> Path:
    """Return the path of a file in the folder `deploy`, such as `systemd/agent-smith.service`."""
    file_in_checkout = Path(__file__).resolve().parents[1] / "deploy" / name
    if file_in_checkout.is_file():
        return file_in_checkout
    return Path(str(importlib.resources.files("executor"))) / "deploy" / name
