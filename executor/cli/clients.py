"""Creates the clients of FulcrumCore and Proxmox for a command, with the same settings as the agent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from executor.cli.context import open_settings
from executor.errors import FulcrumUnavailable
from executor.fulcrum.client import FulcrumClient
from executor.fulcrum.remote_config import wait_for_remote_settings
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.connection import ProxmoxConnection
from executor.settings.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Clients:
    """The clients of FulcrumCore and Proxmox, their settings, and the agent's id in FulcrumCore."""

    settings: Settings
    fulcrum: FulcrumClient
    proxmox: ProxmoxReader
    agent_id: str


def create_fulcrum_and_proxmox_clients() -> Clients:
    """Read the settings, including the settings that FulcrumCore stores for the agent, and return the clients.

    Raises SettingsError for a missing setting, and FulcrumError when FulcrumCore does not answer or refuses the token.
    """
    settings = open_settings()
    settings.require_fulcrum_settings()
    fulcrum = FulcrumClient(
        settings.fulcrum_api_url,
        settings.fulcrum_api_token.get_secret_value,
        ca_bundle=settings.fulcrum_ca_bundle,
        verify_tls=settings.fulcrum_verify_tls,
    )
    # `on_wait` is called before each wait for FulcrumCore. _fail_instead_of_waiting ends the command there.
    settings = wait_for_remote_settings(settings, fulcrum, on_wait=_fail_instead_of_waiting)
    settings.require_proxmox_settings()
    proxmox = ProxmoxReader(ProxmoxConnection.from_settings(settings))
    return Clients(settings=settings, fulcrum=fulcrum, proxmox=proxmox, agent_id=fulcrum.get_own_agent().id)


def create_proxmox_reader(settings: Settings) -> ProxmoxReader:
    """Return a client that reads from Proxmox.

    If SMITH_REMOTE_CONFIG is true, some settings may come from FulcrumCore, so FulcrumCore is called first.
    Otherwise, FulcrumCore is not called.
    """
    if settings.smith_remote_config:
        return create_fulcrum_and_proxmox_clients().proxmox
    settings.require_proxmox_settings()
    return ProxmoxReader(ProxmoxConnection.from_settings(settings))


def _fail_instead_of_waiting(reason: str) -> NoReturn:
    """Raise FulcrumUnavailable. (When FulcrumCore is not available, the agent waits, but a command does not.)"""
    raise FulcrumUnavailable(f"the settings that FulcrumCore stores for the agent cannot be read: {reason}")
