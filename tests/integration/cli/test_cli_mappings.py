"""`smith mappings list` and `show`: which VM serves which service now, and which services it served earlier."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.cli_world import Cli

from executor.database import mappings
from executor.model import MappingState

FIRST = "aaaa1111-0000-4000-8000-000000000000"
SECOND = "aaaa2222-0000-4000-8000-000000000000"


@pytest.fixture
def smith(tmp_path: Path) -> Cli:
    """Return a command line whose database has two mappings of one VMID: a deleted and an active one."""
    cli = Cli(tmp_path)
    with cli.database_session() as session:
        old = mappings.reserve(session, service_id=FIRST, cluster="default", vmid=100001, name="web-aaaa1111")
        assert old is not None
        mappings.apply_result(session, old.id, {"status": "absent"})
        new = mappings.reserve(session, service_id=SECOND, cluster="default", vmid=100001, name="db-aaaa2222")
        assert new is not None
        mappings.apply_result(session, new.id, {"status": "running", "node": "pve2"})
    return cli


def test_the_list_shows_only_mappings_that_are_not_deleted(smith: Cli) -> None:
    rows = smith.json("mappings", "list")
    assert [(row["vmid"], row["service_id"], row["state"], row["node"]) for row in rows] == [
        (100001, SECOND, MappingState.ACTIVE, "pve2")
    ]
    assert set(rows[0]) == {
        "service_id",
        "cluster",
        "vmid",
        "kind",
        "node",
        "name",
        "state",
        "marker",
        "mac_address",
        "note",
        "created_at",
        "updated_at",
        "deleted_at",
        "delete_at",
    }
    assert "db-aaaa2222" in smith.ok("mappings", "list")


def test_the_list_shows_deleted_mappings_with_the_option_all_or_state(smith: Cli) -> None:
    def service_ids(*args: str) -> list[str]:
        return [row["service_id"] for row in smith.json("mappings", "list", *args)]

    assert service_ids("--all") == [SECOND, FIRST]
    assert service_ids("--state", "deleted") == [FIRST]
    assert service_ids("--all", "--state", "reserved") == []
    assert smith.ok("mappings", "list", "--state", "vm_lost") == "no mappings match\n"


@pytest.mark.parametrize("reference", ["100001", "db-aaaa2222", SECOND, "aaaa2"])
def test_a_mapping_is_found_by_each_kind_of_reference(reference: str, smith: Cli) -> None:
    assert smith.json("mappings", "show", reference)["service_id"] == SECOND


def test_a_vmid_shows_its_earlier_services(smith: Cli) -> None:
    mapping = smith.json("mappings", "show", "100001")
    assert [row["service_id"] for row in mapping["history"]] == [FIRST]
    output = smith.ok("mappings", "show", "100001")
    assert output.index(SECOND) < output.index("History") < output.index(FIRST)


def test_a_service_with_a_deleted_vm_is_found(smith: Cli) -> None:
    mapping = smith.json("mappings", "show", FIRST)
    assert (mapping["state"], mapping["history"]) == (MappingState.DELETED, [])


def test_the_beginning_of_two_service_ids_fails_and_both_are_named(smith: Cli) -> None:
    done = smith("mappings", "show", "aaaa")
    assert done.returncode == 1
    assert FIRST in done.stderr
    assert SECOND in done.stderr


@pytest.mark.parametrize("reference", ["4711", "nobody", "%", "²", "9" * 30])
def test_an_unknown_mapping_fails_with_a_hint(reference: str, smith: Cli) -> None:
    done = smith("mappings", "show", reference)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("smith: no mapping matches")


@pytest.mark.parametrize("command", ["show", "forget"])
@pytest.mark.parametrize("reference", ["", " "])
def test_an_empty_reference_is_named_in_the_error(command: str, reference: str, smith: Cli) -> None:
    done = smith("mappings", command, reference)
    hint = "the reference is empty, so it matches no mapping: `smith mappings list` shows the mappings"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"smith: {hint}\n")


def test_a_service_id_that_begins_with_digits_only_is_found(smith: Cli) -> None:
    """`smith mappings list` shows the first eight characters of a service's id, and all of them may be digits."""
    with smith.database_session() as session:
        for vmid, beginning in ((200001, "12345678"), (200002, "12345679")):
            service_id = f"{beginning}-0000-4000-8000-000000000000"
            mappings.reserve(session, service_id=service_id, cluster="default", vmid=vmid, name=f"vm-{vmid}")
    assert smith.json("mappings", "show", "12345678")["vmid"] == 200001
    done = smith("mappings", "show", "1234567")
    assert done.returncode == 1
    assert "no mapping matches" in done.stderr, "a shorter number is a VMID"
