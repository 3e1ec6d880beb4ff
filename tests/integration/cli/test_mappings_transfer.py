"""`smith mappings export` and `import`, with which a new host gets the mappings of the old one."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.cli_world import Cli

from executor.database import mappings
from executor.database.tables.mappings import Mapping
from executor.model import MappingState

SERVICES = [f"aaaa111{number}-0000-4000-8000-000000000000" for number in range(4)]
#: The columns that the import sets itself.
COLUMNS_SET_BY_IMPORT = {"created_at", "updated_at"}


@pytest.fixture
def old_host(tmp_path: Path) -> Cli:
    """Return the old host: it has a reserved, an active, a pending and a deleted mapping."""
    (tmp_path / "old").mkdir()
    cli = Cli(tmp_path / "old")
    with cli.database_session() as session:
        for number, service_id in enumerate(SERVICES):
            row = mappings.reserve(session, service_id=service_id, cluster="c", vmid=100 + number, name=f"vm-{number}")
            assert row is not None
        active, pending, ended = (mappings.find_current_mapping(session, service_id) for service_id in SERVICES[1:])
        assert active is not None
        assert pending is not None
        assert ended is not None
        mappings.apply_result(session, active.id, {"status": "running", "node": "pve2", "mac_address": "AA:BB"})
        active.tenant_id, active.cores, active.memory_mib, active.kind = "tenant", 2, 512, "lxc"
        due = datetime.now(UTC) + timedelta(days=3)
        mappings.apply_result(session, pending.id, {"status": "stopped", "delete_at": int(due.timestamp())})
        mappings.mark_mapping_deleted(session, ended.id, "ended")
    return cli


@pytest.fixture
def new_host(tmp_path: Path) -> Cli:
    """Return the new host, whose database is empty."""
    (tmp_path / "new").mkdir()
    cli = Cli(tmp_path / "new")
    with cli.database_session():
        pass
    return cli


def contents(cli: Cli) -> list[dict[str, Any]]:
    """Return the mappings that are not deleted, by VMID, without the columns that the import sets itself."""
    columns = [column.name for column in Mapping.__table__.columns if column.name not in {"id", *COLUMNS_SET_BY_IMPORT}]
    with cli.database_session() as session:
        rows = sorted(mappings.all_current_mappings(session), key=lambda row: row.vmid)
        return [{name: getattr(row, name) for name in columns} for row in rows]


def test_an_import_restores_all_current_mappings_and_a_second_one_changes_nothing(old_host: Cli, new_host: Cli) -> None:
    file = old_host.folder / "mappings.json"
    assert old_host.ok("mappings", "export", str(file)) == f"3 mappings written to {file}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "cannot be written: File exists" in old_host("mappings", "export", str(file)).stderr

    planned = new_host.json("mappings", "import", str(file), "--dry-run")
    assert [row["outcome"] for row in planned] == ["would be imported"] * 3
    assert contents(new_host) == []
    assert new_host("mappings", "import", str(file)).returncode == 2  # no terminal to ask on
    assert "3 imported" in new_host.ok("mappings", "import", str(file), "--yes", "--reason", "new host")
    assert contents(new_host) == contents(old_host)
    entries = new_host.json("audit", "list")
    assert {(entry["verb"], entry["reason"]) for entry in entries} == {("import", "new host")}
    assert len(entries) == 3

    assert "3 imported before" in new_host.ok("mappings", "import", str(file))
    assert len(new_host.json("audit", "list")) == 3


def test_a_mapping_that_contradicts_another_is_refused_and_the_others_are_imported(
    old_host: Cli, new_host: Cli
) -> None:
    file = old_host.folder / "mappings.json"
    old_host.ok("mappings", "export", str(file))
    with new_host.database_session() as session:
        mappings.reserve(session, service_id=SERVICES[0], cluster="c", vmid=900, name="other")
    for arguments in (["--dry-run"], ["--yes"]):
        done = new_host("mappings", "import", str(file), "--json", *arguments)
        assert done.returncode == 7
        assert [row["outcome"] == "refused" for row in json.loads(done.stdout)] == [True, False, False]
    assert {row["state"] for row in contents(new_host)} == {
        MappingState.RESERVED,
        MappingState.ACTIVE,
        MappingState.PENDING_DELETION,
    }


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row.pop("name"),
        lambda row: row.update(vmid="100"),
        lambda row: row.update(vmid=True),
        lambda row: row.update(service_id="not-a-uuid"),
        lambda row: row.update(state=MappingState.DELETED),
        lambda row: row.update(state="unknown"),
        lambda row: row.update(state={"a": 1}),
        lambda row: row.update(kind=7),
        lambda row: row.update(cores=-1),
        lambda row: row.update(cores=1.5),
        lambda row: row.update(name="x" * 101),
        lambda row: row.update(node="a\x1b[2J"),
        lambda row: row.update(node="../access"),
        lambda row: row.update(node=False),
        lambda row: row.update(mac_address=[]),
        lambda row: row.update(tenant_id=0),
        lambda row: row.update(memory_mib=2**62),
        lambda row: row.update(note=[1]),
        lambda row: row.update(note="a\0b"),
        lambda row: row.update(note="\ud800"),
        lambda row: row.update(note="x" * 4001),
        lambda row: row.update(delete_at="soon"),
        lambda row: row.update(delete_at="2030-01-01T00:00:00+00:00"),
        lambda row: row.update(state=MappingState.PENDING_DELETION, delete_at="2030-01-01T00:00:00"),
        lambda row: row.update(state=MappingState.PENDING_DELETION, delete_at=["soon"]),
        lambda row: row.update(state=MappingState.PENDING_DELETION, delete_at=None),
        lambda row: row.update(state=MappingState.PENDING_DELETION, delete_at="0001-01-01T00:00:00+23:00"),
    ],
)
def test_a_row_with_an_invalid_value_is_refused_with_a_reason(
    old_host: Cli, new_host: Cli, change: Callable[[dict[str, Any]], Any]
) -> None:
    file = old_host.folder / "mappings.json"
    old_host.ok("mappings", "export", str(file))
    document = json.loads(file.read_text())
    document["mappings"] = document["mappings"][:1]
    change(document["mappings"][0])
    file.write_text(json.dumps(document))
    done = new_host("mappings", "import", str(file), "--yes", "--json")
    assert done.returncode == 1, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["outcome"] == "refused"
    assert row["why"]
    assert contents(new_host) == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "agent-smith-mappings-1", "mappings": [1]}'])
def test_a_file_that_the_export_did_not_write_is_refused(new_host: Cli, text: str) -> None:
    file = new_host.folder / "file"
    file.write_text(text)
    done = new_host("mappings", "import", str(file), "--yes")
    assert done.returncode == 1
    assert "was not written by `smith mappings export`" in done.stderr
