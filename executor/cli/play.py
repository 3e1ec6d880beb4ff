"""`smith play`: runs one action with ansible-playbook, and shows the same result that an agent would store for a job.

The playbook gets one extra variable, the dictionary `vm`. A member of `vm` is a key with its value, such as cores=4.
The spec of a member is its entry in the argument_specs of the playbook's roles. The effect of an action is whether it
reads, changes or destroys a VM.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from executor.cli import action_checks, ansible_playbook, play_many, play_plan, play_result
from executor.cli.actions import find_action
from executor.cli.ansible_playbook import PlaybookRequest
from executor.cli.arguments import EXIT_INTERRUPTED, AsJson
from executor.cli.completion import complete_action, complete_mapping, complete_vmid
from executor.cli.context import open_settings
from executor.cli.help_text import examples
from executor.cli.output import show_error
from executor.cli.play_target import Target, find_target
from executor.cli.play_values import read_members
from executor.cli.play_vm import build_request, make_vm_variable
from executor.cli.service_lock import lock_service_of_vm
from executor.cli.store import open_database_if_exists
from executor.errors import EXIT_FAILURE
from executor.model import JobResult
from executor.runs.action_effect import find_effect
from executor.settings.settings import Settings

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
    from sqlalchemy import Engine


@examples(
    "smith play start --service web-1                 a VMID, a VM's name, or the beginning of a service's id",
    "smith play update --service web-1 -e cores=4 --check",
    "smith play create --vars vm.yml                  asks for missing members of vm",
    "smith play delete --vmid 100123 --yes --reason 'order 4711'",
    "smith play stop --hosts tag_gold --parallel 8    several VMs: hosts and groups of inventory/smith.proxmox.yml",
)
def play(  # noqa: PLR0913, PLR0917 (each parameter is an option; typer passes all by name)
    action_name: Annotated[
        str,
        typer.Argument(
            metavar="ACTION", help="An action, as `smith actions list` shows it.", autocompletion=complete_action
        ),
    ],
    vars_file: Annotated[
        Path | None,
        typer.Option(
            "--vars", metavar="FILE", exists=True, dir_okay=False, help="A YAML file with members of vm: `vm: {…}`."
        ),
    ] = None,
    member_arguments: Annotated[
        list[str] | None,
        typer.Option("-e", metavar="KEY=VALUE", help="Set a member of vm, such as cores=4; docs/actions.md lists all."),
    ] = None,
    service: Annotated[
        str | None,
        typer.Option(
            "--service",
            metavar="REF",
            help="The VM of a service that has a mapping: a VMID, a VM's name, or the beginning of a service's id. The "
            "mapping is updated.",
            autocompletion=complete_mapping,
        ),
    ] = None,
    vmid: Annotated[
        int | None,
        typer.Option(
            "--vmid", metavar="N", help="The VM with this VMID; no mapping is changed.", autocompletion=complete_vmid
        ),
    ] = None,
    vm_name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="The VM with this name; no mapping is changed.")
    ] = None,
    hosts: Annotated[
        str | None,
        typer.Option(
            "--hosts", metavar="PATTERN", help="All VMs of inventory/smith.proxmox.yml that match this Ansible pattern."
        ),
    ] = None,
    parallel: Annotated[
        int,
        typer.Option("--parallel", metavar="N", min=1, max=64, help="With --hosts: on at most N VMs at the same time."),
    ] = 4,
    check: Annotated[bool, typer.Option("--check", help="Show what would be changed, and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Show no plan, and do not ask.")] = False,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Stored in the audit log (`smith audit list`).")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Run an action's playbook with ansible-playbook.

    The command shows the VM and its service. On a terminal, it asks for missing members of vm. Before an action that
    changes something, it shows a plan and asks for confirmation. Without a terminal, an action that destroys data needs
    --yes. The playbook's output is shown while the playbook runs, and the result when the playbook has ended.

    While an agent works on the VM, the command is refused. While the command works on the VM, jobs of the VM's service
    wait.
    """
    if sum(option is not None for option in (service, vmid, vm_name, hosts)) > 1:
        raise typer.BadParameter("--service, --vmid, --name and --hosts cannot be combined")
    settings = open_settings()
    settings.require_proxmox_settings()
    action = find_action(action_name)
    effect = find_effect(action)
    play_plan.require_yes_or_terminal(action, effect, is_check_mode=check, yes=yes, as_json=as_json)
    must_show_plan = play_plan.must_show_plan(effect, is_check_mode=check, yes=yes, as_json=as_json)
    vm_member_specs = action_checks.read_vm_member_specs(action.playbook)
    vm_members_from_operator = read_members(vars_file, member_arguments or [], vm_member_specs)
    if hosts is not None:
        hosts_options = play_many.HostsOptions(
            pattern=hosts, max_parallel=parallel, is_check_mode=check, must_show_plan=must_show_plan, reason=reason
        )
        play_many.play(action, vm_members_from_operator, vm_member_specs, settings, hosts_options, as_json=as_json)
        return
    with open_database_if_exists(settings) as engine:
        # `target.identity` has the members that identify the VM, such as its service's id and its VMID. It is empty if
        # the operator identifies the VM with --vars or -e, not with --service, --vmid or --name.
        target = find_target(engine, settings, action, service=service, vmid=vmid, name=vm_name)
        vm = make_vm_variable(vm_members_from_operator, action, settings, target.identity, vm_member_specs)
        request = build_request(action, vm, vm_member_specs, is_check_mode=check)
        if not as_json:
            play_plan.show_target(request, target, engine)
        if must_show_plan:
            play_plan.show_plan_and_confirm(action, effect, request, settings)
        result, run_ident, is_mapping_updated = _run_playbook(
            request, target, settings, engine, reason, as_json=as_json
        )
    play_result.show_result(
        request, result, target.mapping, run_ident=run_ident, is_mapping_updated=is_mapping_updated, as_json=as_json
    )
    if not result.succeeded:
        raise typer.Exit(EXIT_FAILURE)


def _run_playbook(  # noqa: PLR0913 (each value is needed for the run, or for what is stored about it)
    request: PlaybookRequest, target: Target, settings: Settings, engine: Engine | None, reason: str, *, as_json: bool
) -> tuple[JobResult, str, bool]:
    """Run the playbook and store its result. Return the result, the run's ident, and whether the mapping was updated.

    `lock_service_of_vm` stores the run in the database. Until the run ends, no agent claims a job of the VM's service.
    The returned ident is empty if no run is stored: in check mode, without a database, or if the VM has no service.
    With --json, the playbook's output is printed on stderr.
    """
    output = sys.stderr if as_json else sys.stdout
    try:
        if request.is_check_mode:
            return ansible_playbook.run(request, settings, output), "", False
        with lock_service_of_vm(engine, request.action, request.vm, reason) as lock:
            result = ansible_playbook.run(request, settings, output, lock)  # `lock` stores the run's output and result
            is_mapping_updated = play_result.store_in_mapping(engine, target.mapping, result)
            return result, lock.run_ident, is_mapping_updated
    except KeyboardInterrupt:
        show_error(
            "interrupted: the playbook was ended, and may have made a part of its changes. Run the action again to "
            "continue, or with --check to see the missing changes"
        )
        raise typer.Exit(EXIT_INTERRUPTED) from None
