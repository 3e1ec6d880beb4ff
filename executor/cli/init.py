"""`smith init`: sets up Proxmox, FulcrumCore, the settings and the systemd or container unit of one agent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from executor.cli.bootstrap import ADMIN_TOKEN_VARIABLE
from executor.cli.help_text import examples
from executor.cli.init_answers import Prompter
from executor.cli.init_files import SetupFolder
from executor.cli.init_proxmox import AdminLogin, log_in_as_administrator
from executor.cli.init_questions import FulcrumOptions, ask_about_fulcrum, ask_proposed_settings, ask_proxmox_address
from executor.cli.init_settings import DEFAULT_TOKEN, DEFAULT_USER, InitSettings, parse_assignments
from executor.cli.init_setup import Setup
from executor.cli.init_units import UnitKind
from executor.cli.output import show_text

#: The default of --folder for root, and the default for any other user.
ROOT_FOLDER, USER_FOLDER = Path("/etc/agent-smith"), Path("~/.config/agent-smith")


@examples(
    "smith init                                    ask for everything",
    "smith init --dry-run                          show what would be changed, and change nothing",
    "smith init --yes --proxmox pve1.example.net --fingerprint 4F:2A:… --admin-password-file pw \\",
    "    --fulcrum-url https://core.example.net --admin-token-file admin-token --agent smith-dc1 \\",
    "    --provider 'My cloud' --unit systemd",
)
def init(  # noqa: PLR0913, PLR0917 (each parameter is an option; typer passes all by name)
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder",
            help=f"Folder for settings and secrets; default: {ROOT_FOLDER} for root, otherwise {USER_FOLDER}.",
        ),
    ] = None,
    proxmox: Annotated[
        str | None, typer.Option("--proxmox", metavar="HOST[:PORT]", help="A node of the Proxmox cluster.")
    ] = None,
    fingerprint: Annotated[
        str | None, typer.Option("--fingerprint", help="SHA-256 fingerprint of Proxmox's certificate.")
    ] = None,
    ca_file: Annotated[
        Path | None,
        typer.Option(
            "--ca-file",
            help="File with the CA of Proxmox's certificate; default: the CA of an earlier run, a CA of this system, "
            "or the cluster's CA, which Proxmox sends.",
        ),
    ] = None,
    admin: Annotated[
        str | None,
        typer.Option(
            "--admin", help="Administrator of Proxmox, or the administrator's token USER!NAME; default: root@pam."
        ),
    ] = None,
    admin_password_file: Annotated[
        Path | None,
        typer.Option(
            "--admin-password-file",
            help="File with this administrator's password (or the token's secret); default: the text in "
            "$PVE_ADMIN_PASSWORD.",
        ),
    ] = None,
    user: Annotated[
        str | None, typer.Option("--user", help=f"The agent's user in Proxmox; default: {DEFAULT_USER}.")
    ] = None,
    token: Annotated[
        str | None, typer.Option("--token", help=f"The name of the agent's token in Proxmox; default: {DEFAULT_TOKEN}.")
    ] = None,
    fulcrum_url: Annotated[str | None, typer.Option("--fulcrum-url", help="FulcrumCore's address.")] = None,
    admin_token_file: Annotated[
        Path | None,
        typer.Option(
            "--admin-token-file",
            help=f"File with a token of FulcrumCore's administrator; default: the token in ${ADMIN_TOKEN_VARIABLE}.",
        ),
    ] = None,
    agent: Annotated[str | None, typer.Option("--agent", help="The agent's name in FulcrumCore.")] = None,
    provider: Annotated[
        str | None,
        typer.Option("--provider", help="Name or id of the agent's provider (a participant in FulcrumCore)."),
    ] = None,
    create_provider: Annotated[
        bool, typer.Option("--create-provider", help="Create this provider if it does not exist.")
    ] = False,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Give the setting NAME this value, not the proposed one; may be repeated.",
        ),
    ] = None,
    unit: Annotated[
        str | None,
        typer.Option(
            "--unit", help="How the agent is started: systemd, quadlet, compose, or none (you start it yourself)."
        ),
    ] = None,
    unit_folder: Annotated[
        Path | None,
        typer.Option(
            "--unit-folder",
            help="Folder for the unit; default: --folder for a compose file, otherwise the folder in which systemd or "
            "podman looks for units.",
        ),
    ] = None,
    replace_tokens: Annotated[
        bool,
        typer.Option(
            "--replace-tokens",
            help="If the secret of one of the agent's tokens is not stored in --folder, replace this token.",
        ),
    ] = False,
    yes: Annotated[
        bool,
        typer.Option(
            "--yes", help="Use the default answer to each question that has one, and do not ask before the changes."
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be changed, and change nothing.")] = False,
) -> None:
    """Set up Proxmox, FulcrumCore and the settings; write a systemd unit, quadlet or compose file.

    The command creates a role, a user, a token, a pool and permissions in Proxmox, the agent, its token and its types
    (service type, agent type, metric types) in FulcrumCore, and the files with the settings. The administrators' logins
    are not stored. A second run changes nothing. After an interruption, a second run makes the changes that are still
    missing. At its end, the command runs the checks of `smith doctor` and shows the command that starts the agent.
    """
    prompter = Prompter(skips_questions_with_default=yes)
    setup_folder = SetupFolder(folder or (ROOT_FOLDER if os.geteuid() == 0 else USER_FOLDER))
    settings = InitSettings(setup_folder.read_settings(), parse_assignments(assignments or []))
    host, port = ask_proxmox_address(prompter, proxmox, settings)
    login = AdminLogin(user=admin, password_file=admin_password_file, fingerprint=fingerprint, ca_file=ca_file)
    admin_connection = log_in_as_administrator(prompter, host, port, login, setup_folder.ca_file)
    settings.set_connection(host=host, port=port, user=user, token_id=token)
    ask_proposed_settings(prompter, settings, admin_connection.cluster)
    options = FulcrumOptions(
        url=fulcrum_url,
        admin_token_file=admin_token_file,
        agent=agent,
        provider=provider,
        may_create_provider=create_provider,
    )
    earlier_answers = setup_folder.read_answers()
    fulcrum_answers = ask_about_fulcrum(prompter, options, settings, earlier_answers)
    default_unit_kind = earlier_answers.get("unit") or (UnitKind.SYSTEMD if os.geteuid() == 0 else UnitKind.NONE)
    unit_kind = prompter.ask_choice(
        "How the agent is started", tuple(UnitKind), option="--unit", option_value=unit, default=default_unit_kind
    )
    if unit_folder is None and earlier_answers.get("unit") == unit_kind and earlier_answers.get("unit_folder"):
        unit_folder = Path(earlier_answers["unit_folder"])
    unit_folder = unit_folder.expanduser().absolute() if unit_folder else None
    setup = Setup(
        setup_folder, settings, admin_connection, fulcrum_answers, UnitKind(unit_kind), unit_folder, replace_tokens
    )
    is_change_planned = setup.show_plan()
    if not is_change_planned:
        show_text("Everything is set up: nothing is changed.")
    elif dry_run:
        show_text("Nothing was changed: this was a dry run.")
    else:
        prompter.require_agreement("Make these changes?")
    if not dry_run:
        # Even if no change was planned, the operator's answers are stored for the next run.
        setup.make_changes()
        raise typer.Exit(setup.check_and_show_start_command())
