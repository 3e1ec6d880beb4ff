"""`smith play`: one action by hand, with plain ansible-playbook; the result is told as the executor would store it."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from executor.cli import action_checks
from executor.cli import ansible_playbook as by_hand
from executor.cli.actions import folders
from executor.cli.arguments import EXIT_INTERRUPTED, AsJson, NothingToDo, UnknownReference
from executor.cli.context import open_settings
from executor.cli.help_text import examples
from executor.cli.output import complain, harmless, say, show_json
from executor.cli.store import opened
from executor.cli.tables import show_facts, show_heading
from executor.database import mappings, queries
from executor.database.engine import reading, transaction
from executor.database.tables import Mapping as VmMapping
from executor.errors import EXIT_FAILURE, DatabaseError
from executor.model import GuestKind, JobResult, JobStatus, MappingState
from executor.proxmox.client import ProxmoxReader
from executor.proxmox.connection import ProxmoxConnection
from executor.redaction import redactor
from executor.runs import action_schema, actions
from executor.runs.actions import Action
from executor.settings.settings import Settings

#: What a VM, or a container, can be made of.
SOURCES = ("template_vmid", "template", "iso", "blank", "os_template")
#: Who the VM is: of a service that is named, these come from its mapping.
IDENTITY = ("service_id", "vmid", "name", "cluster")
WORDS_OF_TYPES = {"int": "a whole number", "bool": "yes or no", "dict": "a YAML mapping", "list": "a list: a,b"}
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")

Options = Mapping[str, Mapping[str, Any]]


@examples(
    "smith play start --service 100123                a VMID, a VM's name, a service's id or its beginning",
    "smith play update --service web-1-8f2c0a11 -e cores=4 --check",
    "smith play create --vars vm.yml                  asks for what is missing",
    "smith play attach-iso --vmid 100123 -e properties.isoImage=local:iso/debian-13.iso",
)
def play(  # noqa: PLR0913, PLR0917 (one option each; typer passes them by name)
    name: Annotated[str, typer.Argument(metavar="ACTION", help="As `smith actions list` shows it.")],
    vars_file: Annotated[
        Path | None, typer.Option("--vars", metavar="FILE", exists=True, dir_okay=False, help="YAML with vm: {…}.")
    ] = None,
    values: Annotated[
        list[str] | None, typer.Option("-e", metavar="KEY=VALUE", help="A member of vm, such as cores=4.")
    ] = None,
    service: Annotated[
        str | None, typer.Option("--service", metavar="REF", help="Of this service; its mapping is kept up to date.")
    ] = None,
    vmid: Annotated[
        int | None, typer.Option("--vmid", metavar="N", help="On this VMID; no mapping is changed.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Show what would be done, and change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run an action's playbook by hand: ansible-playbook's output as it comes, then the result."""
    if service is not None and vmid is not None:
        raise typer.BadParameter("--service and --vmid exclude each other")

    settings = open_settings()
    settings.require_proxmox()
    action = actions.find(name, folders())

    options = action_checks.vm_options(action.playbook, by_hand.home() / "roles")
    given = _given(vars_file, values or [], options)
    mapping = _mapping_of(settings, service, is_check=check) if service is not None else None
    vm = _complete(given, action, settings, _identity(mapping, vmid, action, settings), options)
    action_schema.check_properties(action, vm.get("properties") or {})
    redactor.add(*_secrets(vm, options))
    result = _run(by_hand.Play(action=name, playbook=action.playbook, vm=vm, is_check=check), settings, as_json)
    is_stored = mapping is not None and not check and _store(settings, mapping, result)
    _tell(result, mapping, is_check=check, is_stored=is_stored, as_json=as_json)
    if not result.succeeded:
        raise typer.Exit(EXIT_FAILURE)


def _run(play: by_hand.Play, settings: Settings, as_json: bool) -> JobResult:
    try:
        return by_hand.run(play, settings, sys.stderr if as_json else sys.stdout)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


# --- what is asked for ------------------------------------------------------------------------------------------


def _given(file: Path | None, values: list[str], options: Options) -> dict[str, Any]:
    """Return what the file and the command line say of `vm`; the command line wins."""
    vm = _from_file(file) if file else {}
    for value in values:
        key, separator, text = value.partition("=")
        if not separator or not key:
            raise typer.BadParameter(f"-e takes KEY=VALUE, not {harmless(key)}")
        _put(vm, key.split("."), text, options)
    return vm


def _from_file(file: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        where = getattr(error, "problem_mark", None)
        raise typer.BadParameter(f"{file} is no YAML{f', at line {where.line + 1}' if where else ''}") from None
    if not isinstance(document, dict) or set(document) != {"vm"} or not isinstance(document["vm"], dict):
        raise typer.BadParameter(f"{file} must hold one mapping, vm: with the VM's members below it")
    return dict(document["vm"])


def _put(vm: dict[str, Any], path: list[str], text: str, options: Options) -> None:
    """Set one member; `a.b=c` reaches into a mapping."""
    place, known = vm, options
    for part in path[:-1]:
        inner = place.setdefault(part, {})
        if not isinstance(inner, dict):
            raise typer.BadParameter(f"{part} has no members")
        place, known = inner, known.get(part, {}).get("options") or {}
    option = known.get(path[-1], {})
    if option.get("no_log") and option.get("type") != "dict":
        raise typer.BadParameter(f"{'.'.join(path)} is a secret, and everybody can see arguments: say it in --vars")
    if not known and len(path) > 1:  # the schema, not the role, knows these
        place[path[-1]] = _guessed(text)
        return
    try:
        place[path[-1]] = _read(text, str(option.get("type") or "str"))
    except ValueError:
        raise typer.BadParameter(f"{'.'.join(path)} must be {WORDS_OF_TYPES[option['type']]}") from None


def _guessed(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _read(text: str, kind: str) -> Any:
    """Return a value of the type that the role's argument_specs name. Raises ValueError."""
    if kind == "int":
        return int(text)
    if kind == "bool":
        if (word := text.lower()) not in TRUE + FALSE:
            raise ValueError(text)
        return word in TRUE
    if kind == "list" and not text.lstrip().startswith("["):
        return [item.strip() for item in text.split(",") if item.strip()]
    if kind in ("list", "dict"):
        value = _guessed(text)
        if not isinstance(value, list if kind == "list" else dict):
            raise ValueError(text)
        return value
    return text


# --- which VM ---------------------------------------------------------------------------------------------------


def _mapping_of(settings: Settings, reference: str, *, is_check: bool) -> VmMapping:
    """Return the mapping of the service that is meant. Raises UnknownReference, NothingToDo while an agent has it."""
    with opened(settings) as engine, reading(engine) as session:
        found = mappings.find(session, reference.strip())
        found = [each for each in found if each.state != MappingState.DELETED]
        if not found:
            raise UnknownReference(f"no VM is mapped for {reference}: `smith mappings list` shows them")
        if len(found) > 1:
            raise UnknownReference(f"more than one fits {reference}: {', '.join(each.name for each in found)}")
        jobs = queries.list_jobs(session, statuses=[JobStatus.PROCESSING], service_id=found[0].service_id, limit=1)
    if jobs and not is_check:
        raise NothingToDo(f"an agent is at work on {found[0].name} (job {jobs[0].id}): wait, or cancel it first")
    return found[0]


def _identity(mapping: VmMapping | None, vmid: int | None, action: Action, settings: Settings) -> dict[str, Any]:
    """Return what is known of the VM: from the mapping, or from what the VM says of itself."""
    if mapping is not None:
        known = {name: getattr(mapping, name) for name in (*IDENTITY, "node") if getattr(mapping, name)}
        return known | ({"kind": mapping.kind} if mapping.kind != GuestKind.QEMU else {})
    if vmid is None:
        return {}
    if action.name == "create":
        return {"vmid": vmid}

    reader = ProxmoxReader(ProxmoxConnection.from_settings(settings))
    row = next((row for row in reader.vms() if row.vmid == vmid), None)
    if row is None:
        raise UnknownReference(f"the token sees no VM {vmid}")
    service_id = reader.marker_of(reader.vm_config(row.node, vmid, kind=row.kind))
    if not service_id:
        raise UnknownReference(f"VM {vmid} ({row.name}) carries no marker of ours, so no action may touch it")
    kind = {"kind": row.kind} if row.kind != GuestKind.QEMU else {}
    return {"service_id": service_id, "vmid": vmid, "name": row.name, "node": row.node, **kind}


def _complete(
    given: dict[str, Any], action: Action, settings: Settings, identity: dict[str, Any], options: Options
) -> dict[str, Any]:
    """Put together what is known, and ask a person for what is missing."""
    for name in IDENTITY:
        if name in given and name in identity and given[name] != identity[name]:
            told = harmless(str(given[name]))
            raise typer.BadParameter(f"{name} is {identity[name]} of the VM that is named, not {told}")
    vm = {**_defaults(action, settings, given), **given, **identity}
    missing = {name: option for name, option in options.items() if option.get("required") and vm.get(name) is None}
    if action.name == "create" and not any(vm.get(source) for source in SOURCES):
        missing["template"] = options.get("template", {})
    if missing and not sys.stdin.isatty():
        told = "\n".join(f"  {name}: {_description(option)}" for name, option in missing.items())
        raise typer.BadParameter(f"vm lacks, and nobody is there to ask (--vars or -e say it):\n{told}")
    for name, option in missing.items():
        vm[name] = _ask(name, option, vm)
    return _with_template(vm, settings)


def _defaults(action: Action, settings: Settings, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the executor would say too."""
    found: dict[str, Any] = {
        "cluster": settings.smith_cluster,
        "timeout_s": int(settings.smith_playbook_timeout_s),
        "shutdown_timeout_s": int(settings.smith_shutdown_timeout_s),
    }
    if action.name in ("start", "restart"):
        found["address_timeout_s"] = int(settings.smith_address_timeout_s)
    if action.name == "backup" and settings.proxmox_backup_storage:
        found["backup_storage"] = settings.proxmox_backup_storage
    if action.name == "delete":
        last = settings.proxmox_backup_storage if settings.smith_final_backup else ""
        wishes = {"grace_s": int(settings.smith_delete_grace_s), "purge": settings.smith_delete_purge}
        found |= {name: wish for name, wish in (wishes | {"final_backup": last}).items() if wish}
    if action.name == "create":
        if not settings.proxmox_full_clones:
            found["full_clone"] = False
        places = {"storage": settings.proxmox_storage, "pool": settings.proxmox_pool}
        found |= {name: place for name, place in places.items() if place}
        if not (given.get("network") or {}).get("bridge") and settings.proxmox_bridge:
            found["bridge"] = settings.proxmox_bridge
        if len(settings.proxmox_nodes) == 1:
            found["node"] = settings.proxmox_nodes[0]
    return found


def _with_template(vm: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Let PROXMOX_TEMPLATES and PROXMOX_OS_TEMPLATES say what a template's name means, as for the executor."""
    if (volume := settings.proxmox_os_templates.get(str(vm.get("os_template") or ""))) is not None:
        vm["os_template"] = volume
    known = settings.proxmox_templates.get(str(vm.get("template") or ""))
    if known is not None and not vm.get("template_vmid"):
        vm["template_vmid"] = known
        del vm["template"]
    return vm


def _ask(name: str, option: Mapping[str, Any], vm: Mapping[str, Any]) -> Any:
    kind = str(option.get("type") or "str")
    default = {
        "service_id": lambda: str(uuid.uuid4()),
        "name": lambda: f"vm-{str(vm.get('service_id', '')).replace('-', '')[:8]}",
    }.get(name, lambda: None)()
    say(f"{name}: {_description(option)}")
    while True:
        try:
            text = typer.prompt(name, default=default, hide_input=bool(option.get("no_log")), err=False)
        except typer.Abort:
            raise typer.Exit(EXIT_INTERRUPTED) from None
        try:
            return _read(str(text), kind)
        except ValueError:
            complain(f"{name} must be {WORDS_OF_TYPES[kind]}")


def _description(option: Mapping[str, Any]) -> str:
    told = option.get("description") or "required"
    return " ".join(str(line) for line in told) if isinstance(told, list) else str(told)


def _secrets(value: Any, options: Options) -> list[str]:
    """Return the values of members that the roles call secret, and of any called password."""
    if not isinstance(value, Mapping):
        return []
    found: list[str] = []
    for name, item in value.items():
        option = options.get(name) or {}
        if isinstance(item, Mapping):
            found += _secrets(item, option.get("options") or {})
        elif isinstance(item, str) and (option.get("no_log") or "passw" in name.lower()):
            found.append(item)
    return found


# --- what came of it --------------------------------------------------------------------------------------------


def _store(settings: Settings, mapping: VmMapping, result: JobResult) -> bool:
    """Write a success into the service's mapping; False when there is nothing to write."""
    if not result.succeeded:
        return False
    if result.vm.get("vmid") != mapping.vmid:
        complain(f"the mapping stays: the playbook reports VM {result.vm.get('vmid')} where {mapping.vmid} is mapped")
        return False
    try:
        with opened(settings) as engine, transaction(engine) as session:
            mappings.apply_result(session, mapping.id, result.vm)
    except DatabaseError as error:
        complain(f"the mapping could not be written, the VM is as the result says: {error}")
        return False
    return True


def _tell(result: JobResult, mapping: VmMapping | None, *, is_check: bool, is_stored: bool, as_json: bool) -> None:
    if as_json:
        document = {"succeeded": result.succeeded, "error_code": result.code, "error_message": result.message or None}
        show_json({**document, "check": is_check, "mapping_updated": is_stored, "vm": result.vm})
        return
    if result.vm:
        show_heading("Plan" if is_check else "Result")
        show_facts(_plan(result.vm) if is_check else result.vm)
    if not result.succeeded:
        complain(result.message)
    elif is_check:
        say("nothing was changed" if result.vm.get("planned") else "nothing would be changed")
    elif mapping is not None:
        say(f"the mapping of service {mapping.service_id} is up to date" if is_stored else "no mapping was changed")
    else:
        say("no mapping was changed: --service names the one that should be")


def _plan(vm: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: vm.get(name) for name in ("vmid", "name", "node", "status")}
    return known | dict(vm.get("planned") or {})
