"""`smith mappings adopt --from FILE`: adopts the VMs that a file lists, each with its service.

The file is the database of the PHP agent (the predecessor of Agent Smith), CSV or JSON. Rows may name deleted services,
contradict each other or be malformed.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from smith_lab.system import LabSystem, run_lab_system
from support.drift_world import VMIDS, World, empty_world, end_service

#: The table of the PHP agent that says which VM serves which service, as its Laravel migration creates it.
PHP_SCHEMA = """
CREATE TABLE job_service_mappings (
  "id" integer primary key autoincrement not null,
  "job_service_id" text not null,
  "vmid" integer,
  "created_at" datetime,
  unique ("job_service_id", "vmid")
)
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabSystem]:
    with run_lab_system(tmp_path_factory.mktemp("lab")) as system:
        yield system


@pytest.fixture
def world(lab: LabSystem, tmp_path: Path) -> Iterator[World]:
    with empty_world(lab, tmp_path) as new_world:
        yield new_world


def create_php_database(folder: Path, pairs: Sequence[tuple[Any, Any]]) -> Path:
    file = folder / "php.sqlite"
    connection = sqlite3.connect(file)
    connection.execute(PHP_SCHEMA)
    insert = "INSERT INTO job_service_mappings (job_service_id, vmid, created_at) VALUES (?, ?, '2025-03-01 10:00:00')"
    connection.executemany(insert, pairs)
    connection.commit()
    connection.close()
    return file


def adopt_from_file(world: World, file: Path, *more: str, code: int) -> dict[tuple[str, Any], tuple[str, str]]:
    """Run the command, which must exit with `code`. Return the outcome and the reason of each (service id, VMID)."""
    done = world.cli("mappings", "adopt", "--from", str(file), "--json", *more)
    assert done.returncode == code, done.stderr
    return {(row["service_id"], row["vmid"]): (row["outcome"], row["why"] or "") for row in json.loads(done.stdout)}


def test_all_valid_rows_of_the_php_agents_database_are_adopted_and_a_second_run_changes_nothing(world: World) -> None:
    plain, marked, moved, reused, ended, split, first_rival, second_rival = (world.service(None) for _ in range(8))
    end_service(world.lab, ended)
    vm = {name: world.add_vm() for name in ("plain", "moved", "reused", "split 1", "split 2", "rivals", "other's")}
    vm["marked"] = world.add_vm(marked)
    other_service = str(uuid.uuid4())
    world.lab.proxmox.control(
        "configure", vmid=vm["other's"], values={"description": f"smith-uid={other_service}", "tags": "smith"}
    )
    missing_vmid = next(VMIDS)
    expected = {
        (plain, vm["plain"]): ("would be adopted", ""),
        (marked, vm["marked"]): ("would be adopted", ""),
        (moved, missing_vmid): (
            "left out",
            f"Proxmox does not list a VM {missing_vmid}",
        ),  # of the service's two VMs, one exists
        (moved, vm["moved"]): ("would be adopted", ""),
        (ended, vm["reused"]): ("left out", "is Deleted in FulcrumCore"),  # of the VM's two services, one exists
        (reused, vm["reused"]): ("would be adopted", ""),
        (other_service, vm["plain"]): ("left out", "FulcrumCore knows no service"),
        (split, vm["split 1"]): ("refused", "several existing VMs for this service"),
        (split, vm["split 2"]): ("refused", "several existing VMs for this service"),
        (first_rival, vm["rivals"]): ("refused", "several services for this VM"),
        (second_rival, vm["rivals"]): ("refused", "several services for this VM"),
        (plain, vm["other's"]): ("refused", f"has the marker of {other_service}"),
        (plain, 9000): ("refused", "is a template"),
        ("not-a-uuid", vm["plain"]): ("refused", "is not the id of a service"),
        (plain, None): ("refused", "is not a VMID"),
        (plain, 12): ("refused", "is not a VMID"),
    }
    malformed = [(plain.upper(), "many"), (b"\xff\xfe", 100)]
    file = create_php_database(world.cli.folder, [*expected, *malformed])
    before = file.read_bytes()
    world.lab.proxmox.reset_request_log()

    planned = adopt_from_file(world, file, "--dry-run", code=7)
    assert set(planned) >= set(expected)
    for pair, (outcome, why) in expected.items():
        assert planned[pair][0] == outcome, pair
        assert why in planned[pair][1]
    assert (world.lab.proxmox.changing_requests(), world.audit()) == ([], [])
    assert world.cli("mappings", "adopt", "--from", str(file)).returncode == 2  # no terminal to ask on

    done = adopt_from_file(world, file, "--yes", "--reason", "move", code=7)
    adopted = {pair for pair, (outcome, _why) in done.items() if outcome == "adopted"}
    assert adopted == {pair for pair, (outcome, _why) in expected.items() if outcome == "would be adopted"}
    listed = {(row["service_id"], row["vmid"], row["state"]) for row in world.cli.json("mappings", "list")}
    assert listed == {(service_id, vmid, "active") for service_id, vmid in adopted}
    for service_id, vmid in adopted:
        guest = world.lab.proxmox.guest(vmid)
        assert guest is not None
        assert f"smith-uid={service_id}" in guest["config"]["description"]
    assert sorted(world.audit()) == sorted(("adopt", service_id) for service_id, _vmid in adopted)

    world.lab.proxmox.reset_request_log()
    again = adopt_from_file(world, file, "--yes", code=7)
    assert {pair for pair, (outcome, _why) in again.items() if outcome == "adopted before"} == adopted
    assert not [pair for pair, (outcome, _why) in again.items() if outcome == "adopted"]
    assert (world.lab.proxmox.changing_requests(), len(world.audit())) == ([], len(adopted))
    assert file.read_bytes() == before


def test_a_vm_that_cannot_be_read_is_refused_and_the_other_rows_are_adopted(world: World) -> None:
    unreadable_service, plain = world.service(None), world.service(None)
    unreadable, vmid = world.add_vm(), world.add_vm()
    file = create_php_database(world.cli.folder, [(unreadable_service, unreadable), (plain, vmid)])
    world.lab.proxmox.control("fail", method="GET", path=f"*/qemu/{unreadable}/config", status=595, times=100)
    try:
        done = adopt_from_file(world, file, "--yes", code=7)
    finally:
        world.lab.proxmox.control("clear_faults")
    assert {pair: outcome for pair, (outcome, _why) in done.items()} == {
        (unreadable_service, unreadable): "refused",
        (plain, vmid): "adopted",
    }


@pytest.mark.parametrize("form", ["csv", "semicolons", "json"])
def test_the_vms_in_a_csv_or_json_file_are_adopted(world: World, form: str) -> None:
    service_id = world.service(None)
    vmid = world.add_vm(service_id)
    texts = {
        "csv": f"vmid,service_id,comment\n{vmid},{service_id},web\n",
        "semicolons": f"job_service_id;vmid\r\n{service_id};{vmid}\r\n{service_id};{vmid}\r\n",
        "json": json.dumps([{"service_id": service_id, "vmid": vmid}]),
    }
    file = world.cli.folder / "list"
    file.write_text(texts[form])
    assert adopt_from_file(world, file, "--yes", code=0) == {(service_id, vmid): ("adopted", "")}
    assert world.state(service_id) == ("active", "pve1", f"vm-{vmid}")
    done = world.cli.ok("mappings", "adopt", "--from", str(file), "--dry-run")
    assert "1 adopted before" in done


@pytest.mark.parametrize(
    ("content", "expected_error"),
    [
        ("service,ident\na,b\n", "needs the columns service_id and vmid"),
        ("{}", "must be a JSON list"),
        ("[1]", "must be a JSON list"),
        ("[", "cannot be read"),
        (f'[{{"service_id": "x", "vmid": {"1" * 5000}}}]', "cannot be read"),
        ("\udcff", "cannot be read"),
    ],
)
def test_a_file_without_the_columns_or_the_form_of_a_list_is_refused(
    world: World, content: str, expected_error: str
) -> None:
    file = world.cli.folder / "list"
    file.write_bytes(content.encode(errors="surrogateescape"))
    done = world.cli("mappings", "adopt", "--from", str(file), "--yes")
    assert (done.returncode, expected_error in done.stderr) == (1, True), done.stderr
    assert "Traceback" not in done.stderr


def test_a_sqlite_file_without_the_php_agents_table_is_refused(world: World) -> None:
    done = world.cli("mappings", "adopt", "--from", str(world.cli.file), "--yes")
    assert done.returncode == 1
    assert "has no table job_service_mappings" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["--service", "x"], ["--from", "list", "--vmid", "100"]])
def test_either_a_file_or_one_service_with_its_vmid_must_be_given(world: World, arguments: list[str]) -> None:
    (world.cli.folder / "list").write_text("[]")
    assert world.cli("mappings", "adopt", *arguments).returncode == 2
