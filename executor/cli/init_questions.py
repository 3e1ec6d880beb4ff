"""Asks the operator for the values that `smith init` needs, and shows what exists in Proxmox."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from executor.cli.bootstrap import ADMIN_TOKEN_VARIABLE
from executor.cli.init_answers import Prompter
from executor.cli.init_core import FulcrumAnswers, provider_exists
from executor.cli.init_proposal import Cluster, FoundTemplate, propose_settings
from executor.cli.init_settings import InitSettings, parse_address
from executor.cli.output import show_text
from executor.cli.tables import show_heading
from executor.proxmox.connection import DEFAULT_PORT


@dataclass(frozen=True, kw_only=True)
class FulcrumOptions:
    """The command-line options of `smith init` about FulcrumCore."""

    url: str | None
    admin_token_file: Path | None
    agent: str | None
    provider: str | None
    may_create_provider: bool


def ask_proxmox_address(prompter: Prompter, option_value: str | None, settings: InitSettings) -> tuple[str, int]:
    """Return the host and the port of Proxmox, from the option --proxmox or from the operator's answer.

    The default is the address in `settings`, from an earlier call of `smith init` or from the option --set.
    """
    earlier_address = settings.get("PROXMOX_HOST")
    if earlier_address and settings.get("PROXMOX_PORT"):
        earlier_address = f"{earlier_address}:{settings.get('PROXMOX_PORT')}"
    text = prompter.ask_text(
        "Proxmox host (HOST or HOST:PORT)", option="--proxmox", option_value=option_value, default=earlier_address
    )
    return parse_address(text, DEFAULT_PORT)


def ask_proposed_settings(prompter: Prompter, settings: InitSettings, cluster: Cluster) -> None:
    """Show the objects in Proxmox. Propose settings, which the operator may change. Update `settings`."""
    show_heading("Found in Proxmox")
    bridges = [f"{name} ({cluster.zone_of(name)})" for name in cluster.bridges_on_every_node]
    texts_by_kind = {
        "nodes": cluster.nodes,
        "storages for disks": cluster.disk_storages,
        "bridges and VNets (zone)": bridges,
        "templates": [_template_text(template) for template in cluster.templates],
    }
    show_indented_lines(f"{kind}: {', '.join(texts) or 'none'}" for kind, texts in texts_by_kind.items())
    # A value of an earlier call of `smith init`, or of the option --set, replaces the proposed value.
    proposed_settings = settings.proposal_with_earlier_values(propose_settings(cluster))
    show_heading("Proposed settings: what the agent may use")
    show_indented_lines(f"{name}={value}" for name, value in proposed_settings.items())
    if not prompter.ask_yes_or_no("Use these settings?"):
        proposed_settings = {
            name: prompter.ask_optional_text(name, default=value) for name, value in proposed_settings.items()
        }
    settings.update(proposed_settings)


def _template_text(found_template: FoundTemplate) -> str:
    template, problem = found_template.template, found_template.problem
    return f"{template.name} ({template.vmid} on {template.node}{f'; not usable: {problem}' if problem else ''})"


def ask_about_fulcrum(
    prompter: Prompter, options: FulcrumOptions, settings: InitSettings, earlier_answers: dict[str, str]
) -> FulcrumAnswers:
    """Ask for FulcrumCore's address, an administrator's token, the agent's name and the agent's provider.

    The address is stored in `settings`. `earlier_answers` contains the answers to an earlier call of
    `smith init`. They are the defaults.
    """
    url = settings.get("FULCRUM_API_URL")
    settings.update(
        {
            "FULCRUM_API_URL": prompter.ask_text(
                "URL of FulcrumCore", option="--fulcrum-url", option_value=options.url, default=url
            )
        }
    )
    admin_token = prompter.ask_secret(
        "FulcrumCore administrator's token (it is not stored)",
        file=options.admin_token_file,
        variable=ADMIN_TOKEN_VARIABLE,
        option="--admin-token-file",
    )
    default_agent = earlier_answers.get("agent") or socket.gethostname().partition(".")[0]
    agent_name = prompter.ask_text(
        "Name of the agent", option="--agent", option_value=options.agent, default=default_agent
    )
    provider_name_or_id = prompter.ask_text(
        "Provider of the agent (name or id of a participant in FulcrumCore)",
        option="--provider",
        option_value=options.provider,
        default=earlier_answers.get("provider", ""),
    )
    may_create = options.may_create_provider
    if (
        prompter.is_interactive
        and not may_create
        and not provider_exists(settings.validated(), admin_token, provider_name_or_id)
    ):
        may_create = prompter.ask_yes_or_no(
            f"FulcrumCore has no participant {provider_name_or_id}. Create this participant?", default=False
        )
    return FulcrumAnswers(
        admin_token=admin_token,
        agent_name=agent_name,
        provider_name_or_id=provider_name_or_id,
        may_create_provider=may_create,
    )


def show_indented_lines(texts: Iterable[str]) -> None:
    """Print each text in a separate, indented line."""
    for text in texts:
        show_text(f"  {text}")
