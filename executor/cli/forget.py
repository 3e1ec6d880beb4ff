"""`smith forget`: erases what the database and the artifacts contain about ended services."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, NoReturn
from uuid import UUID

import typer

from executor.cli.archives import archives_of_service, list_archives
from executor.cli.arguments import AsJson, CommandFailed, UnusableArgument, confirm
from executor.cli.clients import create_proxmox_reader
from executor.cli.context import open_settings
from executor.cli.help_text import examples
from executor.cli.output import show_json, show_text
from executor.cli.store import open_database
from executor.cli.tables import show_heading, show_rows
from executor.database import audit, erasure
from executor.database.engine import read_only_session, transaction
from executor.database.erasure import StoredData
from executor.database.times import utc_now
from executor.errors import JobError
from executor.settings.settings import Settings
from executor.views.artifacts import existing_artifacts_folders
from executor.views.text import iso_utc

if TYPE_CHECKING:  # At run time, only executor.database may import SQLAlchemy. import-linter checks this.
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

    from executor.database.tables.jobs import Run

#: "why" says why the archive belongs to the service: by its notes, or by its VMID and its time of creation.
ARCHIVE_COLUMNS = {
    "volume": "ARCHIVE",
    "vmid": "VMID",
    "created_at": "CREATED",
    "service_id": "SERVICE",
    "why": "LISTED BECAUSE",
}
NOT_ERASED_COLUMNS = {"service_id": "SERVICE", "why": "NOT ERASED BECAUSE"}


@examples(
    "smith forget 8f2c0a11-0000-4000-8000-000000000000",
    "smith forget --consumer 5d1e77c2-0000-4000-8000-000000000000 --reason 'request of 27 November' --yes",
)
def forget_services(  # noqa: PLR0913, PLR0917 (one parameter for each option)
    service: Annotated[str, typer.Argument(metavar="SERVICE", help="The whole id of a service that has ended.")] = "",
    # The consumer is the participant in FulcrumCore that uses the service.
    consumer: Annotated[
        str,
        typer.Option(
            "--consumer",
            metavar="ID",
            help="Erase the stored data of all ended services of the consumer with this id.",
        ),
    ] = "",
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Stored in the audit log (`smith audit list`).")
    ] = "",
    without_archives: Annotated[
        bool, typer.Option("--without-archives", help="Do not list the services' archives (backups) at Proxmox.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Erase the stored data of ended services, which have no VM and no unfinished job.

    Jobs, runs, artifacts and mappings are deleted. Audit entries still say who did what and when, but the values and
    reasons in the entries are erased. A service whose create job failed, and that has no VM, counts as ended.

    A service can be erased only after its retention. The retention starts when the service ends, and lasts for the
    longer of SMITH_JOB_RETENTION_S and SMITH_VMID_QUARANTINE_S. This command reads both settings from its own
    environment or `.env` file, not from the agent.

    Archives (backups) at Proxmox are listed and not changed. Backups of our database are not changed either.
    """
    _require_one_id(service, consumer)
    settings = open_settings()
    with open_database(settings) as engine:
        with read_only_session(engine) as session:  # a read-only transaction
            service_ids = erasure.services_of_consumer(session, consumer) if consumer else [service]
            found_data = [
                data
                for service_id in service_ids
                if not (data := erasure.find_stored_data(session, service_id)).is_empty
            ]
            why_not_erasable_by_id = {
                data.service_id: _why_not_erasable(session, data, settings) for data in found_data
            }
            # With --consumer, `service` is "", and None asks whether any service was erased earlier, because the
            # database does not say which consumer an erased service had.
            was_erased_earlier = erasure.was_service_erased(session, service or None)
        erasable_data = [data for data in found_data if not why_not_erasable_by_id[data.service_id]]
        # An earlier `smith forget` may have been interrupted after it erased the rows and before it overwrote their
        # content in the database file. If there is erasable data, this command overwrites the content at its end.
        if was_erased_earlier and not erasable_data:
            erasure.overwrite_deleted_rows(engine)
        if not found_data:
            raise UnusableArgument(f"the database contains nothing about {consumer or service}")
        not_erased_rows = [
            {"service_id": data.service_id, "why": why_not_erasable_by_id[data.service_id]}
            for data in found_data
            if data not in erasable_data
        ]
        if not erasable_data:
            _raise_nothing_erased(not_erased_rows, as_json=as_json)
        # The archives are searched before the rows are erased, because the search needs the VMIDs in the mappings.
        archives = None if without_archives else _find_archives(settings, erasable_data)
        confirm(_confirmation_question(erasable_data), yes=yes)
        for data in erasable_data:
            _erase_service(engine, settings, data.service_id, reason)
        erasure.overwrite_deleted_rows(engine)
    _show_outcome(erasable_data, not_erased_rows, archives, as_json=as_json)


def _require_one_id(service: str, consumer: str) -> None:
    """Raise typer.BadParameter unless exactly one of `service` and `consumer` is set, and is a whole id."""
    if bool(service) == bool(consumer):
        raise typer.BadParameter("name either a service, or a consumer with --consumer")
    try:
        is_whole_id = str(UUID(service or consumer)) == (service or consumer)
    except ValueError:
        is_whole_id = False
    if not is_whole_id:
        raise typer.BadParameter(
            f"{service or consumer} is not a whole UUID in lower case: the whole id is required, because erasing "
            "cannot be undone"
        )


def _raise_nothing_erased(not_erased_rows: Sequence[dict[str, Any]], *, as_json: bool) -> NoReturn:
    """Raise CommandFailed with the reason why nothing is erased. If there are several services, print a table first."""
    if len(not_erased_rows) == 1:
        row = not_erased_rows[0]
        raise CommandFailed(f"nothing was erased. {row['service_id']}: {row['why']}")
    if not as_json:
        show_rows(not_erased_rows, NOT_ERASED_COLUMNS, if_empty="")
    raise CommandFailed(
        f"nothing was erased: each of the {len(not_erased_rows)} services either has not ended or is still in its "
        "retention; `smith forget SERVICE` shows the reason for one of them"
    )


def _why_not_erasable(session: Session, data: StoredData, settings: Settings) -> str:
    """Return why a service may not be erased now, or '' if the service may be erased."""
    if why := erasure.why_service_has_not_ended(session, data):
        return why
    ends_at = _retention_end(data, settings)
    if not ends_at or ends_at <= utc_now():
        return ""
    return f"its retention (SMITH_JOB_RETENTION_S, SMITH_VMID_QUARANTINE_S) ends at {iso_utc(ends_at)}"


def _retention_end(data: StoredData, settings: Settings) -> datetime | None:
    """Return the time at which the service's retention ends.

    Returns None if the service has no retention, because the database has neither an ended job nor a deleted mapping of
    it.
    """
    retention_s = max(settings.smith_job_retention_s, settings.smith_vmid_quarantine_s)
    return data.ended_at and data.ended_at + timedelta(seconds=retention_s)


def _find_archives(settings: Settings, erasable_data: Sequence[StoredData]) -> list[dict[str, Any]]:
    try:
        archives = list_archives(create_proxmox_reader(settings))
    except JobError as error:
        problem = (
            "the archives at Proxmox cannot be listed, so nothing was erased (use --without-archives to erase without "
            f"listing them): {error.detail}"
        )
        raise JobError(error.code, problem) from error
    return [
        row | {"service_id": data.service_id}
        for data in erasable_data
        for row in archives_of_service(archives, data.service_id, data.mappings)
    ]


def _confirmation_question(erasable_data: Sequence[StoredData]) -> str:
    job_count = sum(len(data.job_ids) for data in erasable_data)
    mapping_count = sum(len(data.mappings) for data in erasable_data)
    services = ", ".join(data.service_id for data in erasable_data)
    return (
        f"Erase what is stored about {services} (jobs: {job_count}, mappings: {mapping_count}, and their artifacts)? "
        "This cannot be undone."
    )


def _erase_service(engine: Engine, settings: Settings, service_id: str, reason: str) -> None:
    """Delete the artifacts of a service, then the rows of the service.

    The rows name the artifacts. So the rows are deleted last, and an interrupted command can be repeated.
    """
    with read_only_session(engine) as session:
        runs = erasure.find_stored_data(session, service_id).runs
    for run in runs:
        _delete_artifacts(run, settings)
    with transaction(engine) as session:
        data = erasure.find_stored_data(session, service_id)
        if why := _why_not_erasable(session, data, settings):
            raise CommandFailed(f"service {service_id} was not erased: {why}")
        erasure.erase(session, data, who=audit.operator_name(), reason=reason)


def _delete_artifacts(run: Run, settings: Settings) -> None:
    """Delete every folder on this machine that contains artifacts of the run.

    Raises CommandFailed if a folder cannot be deleted.
    """
    for folder in existing_artifacts_folders(run, settings):
        if run.ident not in (folder.name, folder.parent.name):
            raise CommandFailed(
                f"the database names {folder} as the folder of the artifacts of run {run.ident}, but the path does not "
                "contain this ident, so the folder was not deleted"
            )
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise CommandFailed(f"the artifacts in {folder} cannot be deleted: {error.strerror}") from error


def _show_outcome(
    erased_data: Sequence[StoredData],
    not_erased_rows: Sequence[dict[str, Any]],
    archives: Sequence[dict[str, Any]] | None,
    *,
    as_json: bool,
) -> None:
    """Print what was erased. `archives` is None if the archives at Proxmox were not searched."""
    erased_rows = [
        {
            "service_id": data.service_id,
            "jobs": len(data.job_ids),
            "runs": len(data.runs),
            "mappings": len(data.mappings),
            "audit_entries": data.audit_entry_count,
        }
        for data in erased_data
    ]
    if as_json:
        show_json({"erased": erased_rows, "not_erased": not_erased_rows, "archives": archives or []})
        return
    for row in erased_rows:
        show_text(
            f"erased {row['service_id']}. Jobs: {row['jobs']}, runs (with artifacts): {row['runs']}, "
            f"mappings: {row['mappings']}, audit entries (only their values): {row['audit_entries']}"
        )
    if not_erased_rows:
        show_heading("Not erased")
        show_rows(not_erased_rows, NOT_ERASED_COLUMNS, if_empty="")
    if archives is not None:
        show_heading("Archives of the erased services at Proxmox (not deleted)")
        show_rows(archives, ARCHIVE_COLUMNS, if_empty="none")
