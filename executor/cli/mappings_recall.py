"""`smith mappings recall`: a VM that waits for its destruction is kept."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from executor.cli import ansible_playbook as by_hand
from executor.cli.arguments import AsJson, NothingToDo
from executor.cli.context import open_settings
from executor.cli.help_text import examples
from executor.cli.mappings_adopt import note_mapping, one_mapping, refuse_at_work
from executor.cli.output import say, show_json
from executor.cli.store import opened
from executor.database import audit, job_queue, mappings, queries
from executor.database.engine import reading, transaction
from executor.database.tables import Mapping
from executor.model import GuestKind, JobResult, JobStatus, MappingState
from executor.settings.settings import Settings

if TYPE_CHECKING:  # only the package database uses SQLAlchemy (import-linter)
    from sqlalchemy import Engine


@examples(
    "smith mappings list --state pending_deletion     what waits, and for how long",
    "smith mappings recall 100123                     a VMID, a VM's name, a service's id or its beginning",
    "smith mappings recall web-1-8f2c0a11 --reason 'deleted by mistake'",
)
def recall(
    reference: Annotated[str, typer.Argument(metavar="REF", help="VMID, VM name, service id or its beginning.")],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Kept in the audit.")] = "",
    as_json: AsJson = False,
) -> None:
    """Keep a VM that was deleted with a time of grace: its mark goes, and nothing destroys it any more.

    It stays stopped. FulcrumCore has ended its service for good, so no job will ever ask for it again.
    """
    settings = open_settings()
    settings.require_proxmox()
    with opened(settings) as engine:
        with reading(engine) as session:
            mapping = one_mapping(session, reference.strip())
        _spare(engine, mapping, reason)
        result = by_hand.run(_play(mapping, settings), settings, sys.stderr if as_json else sys.stdout)
        _store(engine, mapping, result)
    if as_json:
        show_json({"service_id": mapping.service_id, "vmid": mapping.vmid, "vm": result.vm})
    elif mapping.state == MappingState.ACTIVE and not result.vm.get("changed"):
        say(f"VM {mapping.vmid} ({mapping.name}) is not marked for deletion")
    else:
        say(f"VM {mapping.vmid} ({mapping.name}) is kept; `smith play start --service {mapping.vmid}` starts it")


def _spare(engine: Engine, mapping: Mapping, reason: str) -> None:
    """Write down that it is to live, before Proxmox is asked: a destruction that is due now finds that first.

    Raises NothingToDo when the VM is not pending deletion, or its destruction is under way.
    """
    with transaction(engine) as session:
        refuse_at_work(session, mapping.service_id)
        row = session.get_one(Mapping, mapping.id)
        if row.state not in (
            MappingState.PENDING_DELETION,
            MappingState.ACTIVE,
        ):  # active: an earlier recall got no further
            raise NothingToDo(f"VM {row.vmid} is {row.state}: nothing waits to destroy it")
        was = audit.facts_of(row, audit.MAPPING_COLUMNS)
        waiting = queries.find_open_job(session, row.service_id)
        if waiting is not None and waiting.status == JobStatus.PENDING and row.state == MappingState.PENDING_DELETION:
            job_queue.request_cancel(session, waiting.id)
        mappings.apply_result(session, row.id, {})
        note_mapping(session, "recall", row, was, reason)


def _play(mapping: Mapping, settings: Settings) -> by_hand.Play:
    vm: dict[str, Any] = {
        "service_id": mapping.service_id,
        "vmid": mapping.vmid,
        "name": mapping.name,
        "node": mapping.node or "",
        "cluster": mapping.cluster,
        "timeout_s": int(settings.smith_playbook_timeout_s),
        "cancel_deletion": True,
    }
    kind = {"kind": mapping.kind} if mapping.kind != GuestKind.QEMU else {}
    return by_hand.Play(action="update", playbook=by_hand.home() / "playbooks" / "update.yml", vm=vm | kind)


def _store(engine: Engine, mapping: Mapping, result: JobResult) -> None:
    """Write what came of it. Raises NothingToDo when the mark is still there."""
    if not result.succeeded:
        raise NothingToDo(
            f"the agent will not destroy VM {mapping.vmid} any more, but its mark could not be taken off "
            f"({result.message}): say the same again"
        )
    with transaction(engine) as session:
        mappings.apply_result(session, mapping.id, result.vm)
