"""`smith forget`: erases what is stored about ended services, and lists their archives at Proxmox."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from smith_lab.system import LabSystem, run_lab_system
from sqlalchemy import text, update
from support.cli_world import Cli

from executor.database import audit, erasure, mapping_conditions, mappings, outbox
from executor.database.tables.jobs import Job, Run
from executor.database.tables.mappings import Mapping
from executor.database.times import utc_now
from executor.model import ReportState

SERVICE = "aaaa1111-0000-4000-8000-000000000000"
OTHER_SERVICE = "bbbb2222-0000-4000-8000-000000000000"
CONSUMER = "cccc3333-0000-4000-8000-000000000000"
#: Texts of the customer. After an erasure, no file of the data folder contains one of them.
CUSTOMER_TEXTS = ("acme-shop", "Anna Example", "acme-printed", "acme-audited")
#: Longer than every retention in the default settings: data of services that ended so long ago may be erased.
LONG_AGO = timedelta(days=1000)


@pytest.fixture
def smith(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def store_ended_service(
    smith: Cli, service_id: str, *, vmid: int = 100_001, age: timedelta = LONG_AGO, **job: Any
) -> Path:
    """Write an ended service with one job, its run with artifacts, its mapping and audit entries.

    Return the folder of the artifacts.
    """
    ident = f"delete-{service_id[:12]}"
    params = {"notes": "Anna Example"}
    job_id = smith.submit(service_id=service_id, action="delete", params=params, tenant_id=CONSUMER, **job)
    folder = smith.run_of(job_id, ident, stdout="acme-printed")
    with smith.database_session() as session:
        row = session.get(Job, job_id)
        assert row is not None
        values = {"status": "completed", "finished_at": utc_now() - age, "owner": None}
        session.execute(update(Job).where(Job.id == job_id).values(**values))
        outbox.set_report_state(session, job_id, ReportState.REPORTED)
        mapping = mappings.reserve(session, service_id=service_id, cluster="default", vmid=vmid, name="acme-shop")
        assert mapping is not None
        mappings.apply_result(session, mapping.id, {"status": "absent"})
        times = {"created_at": utc_now() - age - timedelta(days=1), "deleted_at": utc_now() - age}
        session.execute(update(Mapping).where(Mapping.id == mapping.id).values(**times))
        entry_values: dict[str, Any] = {"who": "alice", "verb": "adopt", "reason": "acme-audited"}
        audit.add_entry(
            session,
            subject_kind="mapping",
            subject_id=service_id,
            after={"service_id": service_id, "name": "x"},
            **entry_values,
        )
        job_values = {"service_id": service_id, "action": "delete"}
        audit.add_entry(session, subject_kind="job", subject_id="a-pruned-job", before=job_values, **entry_values)
    return folder


def files_with(smith: Cli, texts: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return each file of the data folder that contains one of the texts, with the text."""
    files = [file for file in smith.data.rglob("*") if file.is_file()]
    return [
        (file.name, customer_text)
        for file in files
        for customer_text in texts
        if customer_text.encode() in file.read_bytes()
    ]


def row_counts(smith: Cli) -> dict[str, int]:
    """Return the number of jobs, runs and mappings."""
    with sqlite3.connect(smith.file) as connection:
        return {
            table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608 (our own names)
            for table in ("jobs", "runs", "mappings")
        }


def test_nothing_of_an_ended_service_is_left_in_the_data_folder(smith: Cli) -> None:
    folder = store_ended_service(smith, SERVICE)
    assert {customer_text for _file, customer_text in files_with(smith, CUSTOMER_TEXTS)} == set(CUSTOMER_TEXTS)
    outcome = smith.json("forget", SERVICE, "--without-archives", "--yes", "--reason", "request 17")
    erased = {"service_id": SERVICE, "jobs": 1, "runs": 1, "mappings": 1, "audit_entries": 2}
    assert outcome == {"erased": [erased], "not_erased": [], "archives": []}
    assert not folder.exists()
    assert row_counts(smith) == {"jobs": 0, "runs": 0, "mappings": 0}
    assert files_with(smith, CUSTOMER_TEXTS) == []


def test_the_audit_keeps_who_did_what_and_has_an_entry_about_the_erasure(smith: Cli) -> None:
    store_ended_service(smith, SERVICE)
    smith.ok("forget", SERVICE, "--without-archives", "--yes", "--reason", "request 17")
    erased, *earlier = smith.json("audit", "list")
    assert (erased["verb"], erased["subject_kind"], erased["subject_id"]) == ("erase", "service", SERVICE)
    assert (erased["reason"], erased["after"]["jobs"]) == ("request 17", 1)
    assert [(entry["who"], entry["verb"], entry["subject_id"]) for entry in earlier] == [
        ("alice", "adopt", "a-pruned-job"),
        ("alice", "adopt", SERVICE),
    ]
    assert all(entry["before"] is entry["after"] is entry["reason"] is None for entry in earlier)


@pytest.mark.parametrize("has_other_service", [False, True])
@pytest.mark.parametrize("reference", [(SERVICE,), ("--consumer", CONSUMER)])
def test_a_repeated_command_removes_erased_data_from_the_file_that_a_killed_one_has_left(
    smith: Cli, reference: tuple[str, ...], has_other_service: bool
) -> None:
    """SQLite may keep the content of deleted rows in its file until the command rewrites the file.

    With `has_other_service`, the consumer has a second service, which may not be erased yet.
    """
    folder = store_ended_service(smith, SERVICE)
    shutil.rmtree(folder)
    with smith.database_session() as session:
        session.execute(update(Job).values(error_message="acme-erased"))
    if has_other_service:
        store_ended_service(smith, OTHER_SERVICE, vmid=100_002, age=timedelta(minutes=1))
    with smith.database_session() as session:  # as if the first command was killed after it deleted the rows
        session.execute(text("PRAGMA secure_delete = OFF"))  # some builds of SQLite overwrite deleted rows at once
        erasure.erase(session, erasure.find_stored_data(session, SERVICE), who="alice", reason="")
    assert files_with(smith, ("acme-erased",)) != []
    assert smith("forget", *reference, "--yes").returncode == 1
    assert files_with(smith, ("acme-erased",)) == []
    assert has_other_service or files_with(smith, CUSTOMER_TEXTS) == []


def test_another_service_keeps_all_its_data(smith: Cli) -> None:
    store_ended_service(smith, SERVICE)
    folder = store_ended_service(smith, OTHER_SERVICE, vmid=100_002)
    smith.ok("forget", SERVICE, "--without-archives", "--yes")
    assert folder.exists()
    assert row_counts(smith) == {"jobs": 1, "runs": 1, "mappings": 1}
    entries = [entry for entry in smith.json("audit", "list") if entry["verb"] == "adopt" and entry["reason"]]
    assert len(entries) == 2


def test_a_service_is_not_erased_before_its_retention_ends(smith: Cli) -> None:
    folder = store_ended_service(smith, SERVICE, age=timedelta(minutes=1))
    done = smith("forget", SERVICE, "--without-archives", "--yes")
    assert (done.returncode, done.stdout) == (1, "")
    retention = "its retention (SMITH_JOB_RETENTION_S, SMITH_VMID_QUARANTINE_S) ends at 2"
    assert done.stderr.startswith(f"smith: nothing was erased. {SERVICE}: {retention}")
    assert folder.exists()
    assert row_counts(smith) == {"jobs": 1, "runs": 1, "mappings": 1}


def add_open_job(smith: Cli) -> None:
    smith.submit(service_id=SERVICE)


def add_due_report(smith: Cli) -> None:
    with smith.database_session() as session:
        session.execute(update(Job).where(Job.service_id == SERVICE).values(report_state=ReportState.DUE))


def reserve_vm(smith: Cli) -> None:
    with smith.database_session() as session:
        assert mappings.reserve(session, service_id=SERVICE, cluster="default", vmid=100_009, name="new")


def note_left_volumes(smith: Cli) -> None:
    with smith.database_session() as session:
        note = mapping_conditions.VOLUMES_LEFT_PREFIX + "local-lvm:vm-100001-disk-0"
        session.execute(update(Mapping).where(Mapping.service_id == SERVICE).values(note=note))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (add_open_job, "a job has not ended, or its report is due"),
        (add_due_report, "a job has not ended, or its report is due"),
        (reserve_vm, "the service has a mapping, so its VM may exist: "),
        (
            note_left_volumes,
            "volumes of the deleted VM may still exist (local-lvm:vm-100001-disk-0): remove these volumes, then "
            "run `smith drift fix`, which deletes the list of them in the mapping",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_service_that_has_not_ended_is_not_erased(change: Any, reason: str, smith: Cli) -> None:
    folder = store_ended_service(smith, SERVICE)
    change(smith)
    done = smith("forget", SERVICE, "--without-archives", "--yes")
    assert done.returncode == 1
    assert done.stderr.startswith(f"smith: nothing was erased. {SERVICE}: {reason}")
    assert folder.exists()


def test_the_ended_services_of_a_consumer_are_erased_and_the_others_are_named(smith: Cli) -> None:
    store_ended_service(smith, SERVICE)
    store_ended_service(smith, OTHER_SERVICE, vmid=100_002, age=timedelta(minutes=1))
    third_service = "eeee5555-0000-4000-8000-000000000000"
    store_ended_service(smith, third_service, vmid=100_003, age=timedelta(minutes=1))
    unrelated_job_id = smith.submit(tenant_id="dddd4444-0000-4000-8000-000000000000")
    outcome = smith.json("forget", "--consumer", CONSUMER, "--without-archives", "--yes")
    assert [service["service_id"] for service in outcome["erased"]] == [SERVICE]
    reasons = {service["service_id"]: service["why"][:13] for service in outcome["not_erased"]}
    assert reasons == {OTHER_SERVICE: "its retention", third_service: "its retention"}
    assert smith.row(unrelated_job_id).status == "pending"
    refused = smith("forget", "--consumer", CONSUMER, "--without-archives", "--yes", COLUMNS="200")
    assert refused.returncode == 1
    assert OTHER_SERVICE in refused.stdout
    assert third_service in refused.stdout
    assert (
        "nothing was erased: each of the 2 services either has not ended or is still in its retention" in refused.stderr
    )


def test_a_service_that_is_not_in_the_database_is_an_error(smith: Cli) -> None:
    store_ended_service(smith, SERVICE)
    done = smith("forget", OTHER_SERVICE, "--without-archives", "--yes")
    assert (done.returncode, done.stderr) == (1, f"smith: the database contains nothing about {OTHER_SERVICE}\n")


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("",),
        ("aaaa1111",),
        (SERVICE.upper(),),
        ("%",),
        (SERVICE, "--consumer", CONSUMER),
        ("--consumer", "cccc"),
        ("--consumer", ""),
    ],
    ids=" ".join,
)
def test_only_one_whole_id_is_accepted(args: tuple[str, ...], smith: Cli) -> None:
    store_ended_service(smith, SERVICE)
    done = smith("forget", *args, "--without-archives", "--yes")
    assert done.returncode == 2, done.stderr
    assert row_counts(smith) == {"jobs": 1, "runs": 1, "mappings": 1}


def test_without_a_terminal_and_without_yes_nothing_is_erased(smith: Cli) -> None:
    store_ended_service(smith, SERVICE)
    done = smith("forget", SERVICE, "--without-archives")
    assert done.returncode == 2
    assert "use --yes" in done.stderr
    assert row_counts(smith)["jobs"] == 1


def test_a_folder_outside_the_data_folder_is_not_deleted_even_if_the_database_names_it(
    smith: Cli, tmp_path: Path
) -> None:
    store_ended_service(smith, SERVICE)
    outside_folder = tmp_path / "foreign"
    outside_folder.mkdir()
    with smith.database_session() as session:
        session.execute(update(Run).values(folder=str(outside_folder)))
    done = smith("forget", SERVICE, "--without-archives", "--yes")
    assert (done.returncode, outside_folder.is_dir()) == (1, True)
    assert f"the database names {outside_folder} as the folder of the artifacts of run" in done.stderr
    assert row_counts(smith)["jobs"] == 1


# --- archives at Proxmox ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabSystem]:
    with run_lab_system(tmp_path_factory.mktemp("lab")) as system:
        yield system


def test_an_archive_that_names_the_service_is_listed_and_not_changed(lab: LabSystem, smith: Cli) -> None:
    smith.env |= {name: value for name, value in lab.environment().items() if name.startswith("PROXMOX_")}
    config = {"description": f"smith-uid={SERVICE}", "tags": "smith", "memory": "512"}
    lab.proxmox.control("add", vmid=100_001, name="acme-aaaa1111", node="pve1", config=config)
    smith.ok("play", "backup", "--vmid", "100001", PROXMOX_BACKUP_STORAGE="backups")
    store_ended_service(smith, SERVICE)
    store_ended_service(smith, OTHER_SERVICE, vmid=100_001, age=LONG_AGO + timedelta(days=30))
    outcome = smith.json("forget", "--consumer", CONSUMER, "--yes")
    assert {service["service_id"] for service in outcome["erased"]} == {SERVICE, OTHER_SERVICE}
    (archive,) = outcome["archives"]
    assert (archive["service_id"], archive["vmid"]) == (SERVICE, 100_001)
    assert archive["why"] == "the archive's notes name the service"
    store_ended_service(smith, SERVICE, vmid=100_003)
    output = smith.ok("forget", SERVICE, "--yes", COLUMNS="250")
    assert archive["volume"] in output, "the archive still exists"


def test_when_proxmox_does_not_answer_nothing_is_erased(smith: Cli) -> None:
    store_ended_service(smith, SERVICE)
    smith.env |= {
        "PROXMOX_HOST": "127.0.0.1",
        "PROXMOX_PORT": "1",
        "PROXMOX_USER": "smith@pve",
        "PROXMOX_TOKEN_ID": "smith",
        "PROXMOX_TOKEN_SECRET": "00000000-0000-4000-8000-000000000000",
    }
    done = smith("forget", SERVICE, "--yes")
    assert done.returncode == 5, done.stderr
    assert "so nothing was erased (use --without-archives to " in done.stderr
    assert row_counts(smith) == {"jobs": 1, "runs": 1, "mappings": 1}
