"""`smith db migrate`, which moves all rows to another database, and `smith db unseal`.

A move seals its source: from then on, the source refuses every change, so that no agent continues to use it.
`smith db unseal` makes the source usable again. The tests also kill, repeat and refuse moves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update
from support.busy_history import all_rows, fill_every_table
from support.cli_world import Cli
from support.databases import PostgresCluster

from executor.agent.crash_points import CRASH_FILE_VARIABLE, MOVE_POINTS
from executor.agent.database_lock import exclusive_database
from executor.cli.migrate import TARGET_VARIABLE
from executor.database import database_check, manual_runs, move_queries, nodes, schema, table_copy
from executor.database.engine import open_engine, transaction
from executor.database.manual_runs import NewManualRun
from executor.database.nodes import AgentProcess
from executor.database.tables.agents import AgentProcessRow
from executor.database.tables.jobs import ManualRun
from executor.database.times import utc_now

#: A password that the test's server does not check.
PASSWORD = "hunter2-never-shown"
#: Commands that write to the database.
WRITING_COMMANDS = (
    ("pause", "--reason", "x"),
    ("resume",),
    ("db", "upgrade"),
    ("db", "downgrade", "--yes"),
)
#: The settings that `smith run` requires.
AGENT_SETTINGS = {
    "FULCRUM_API_URL": "http://127.0.0.1:9",
    "FULCRUM_API_TOKEN": "token",
    "PROXMOX_HOST": "127.0.0.1",
    "PROXMOX_USER": "smith@pve",
    "PROXMOX_TOKEN_ID": "agent",
    "PROXMOX_TOKEN_SECRET": "secret",
    "SMITH_HTTP_ADDR": "off",
    "SMITH_WARM": "off",
}


@dataclass(frozen=True)
class Move:
    """A source with rows in all tables, an empty target, and the command line whose settings name the source."""

    smith: Cli
    source_url: str
    target_url: str

    def migrate(self, *arguments: str, **env: str) -> tuple[int, str]:
        """Run the command; return its exit code and all that it printed."""
        done = self.smith("db", "migrate", "--yes", *arguments, **({TARGET_VARIABLE: self.target_url} | env))
        assert PASSWORD not in done.stdout + done.stderr
        return done.returncode, done.stdout + done.stderr

    def rows_of(self, url: str) -> dict[str, list[tuple[object, ...]]]:
        engine = open_engine(url)
        try:
            return all_rows(engine)
        finally:
            engine.dispose()

    def shown_target(self) -> str:
        """Return the URL of the target as messages show it: without its password."""
        return move_queries.url_without_password(open_engine(self.target_url).url)


@pytest.fixture(params=["to postgresql", "to sqlite"])
def move(request: pytest.FixtureRequest, tmp_path: Path, postgres: PostgresCluster) -> Iterator[Move]:
    with postgres.fresh_database() as fresh_url:
        url = fresh_url.replace("smith@", f"smith:{PASSWORD}@")
        sqlite_url = f"sqlite:///{tmp_path / 'data' / 'smith.db'}"
        urls = (sqlite_url, url) if request.param == "to postgresql" else (url, sqlite_url)
        engine = open_engine(urls[0])
        schema.upgrade(engine)
        fill_every_table(engine)
        engine.dispose()
        smith = Cli(tmp_path)
        smith.env["SMITH_DATABASE_URL"] = urls[0]
        yield Move(smith, *urls)


def test_a_move_copies_every_row_and_so_does_the_move_back(move: Move, tmp_path: Path) -> None:
    code, printed = move.migrate()
    assert code == 0, printed
    assert "jobs: " in printed
    assert "set SMITH_DATABASE_URL to this URL, and start the agents" in printed
    contents = move.rows_of(move.target_url)
    assert contents == move.rows_of(move.source_url)

    url_of_move_back = f"sqlite:///{tmp_path / 'back.db'}"
    code, printed = move.migrate("--json", SMITH_DATABASE_URL=move.target_url, **{TARGET_VARIABLE: url_of_move_back})
    assert code == 0, printed
    rows_after_move_back = move.rows_of(url_of_move_back)
    assert rows_after_move_back == move.rows_of(move.target_url)
    assert {name: len(table_rows) for name, table_rows in rows_after_move_back.items()} == json.loads(printed)["rows"]
    assert len(rows_after_move_back["audit"]) == len(contents["audit"]) + 1, "the second seal is audited"
    engine = open_engine(url_of_move_back)
    assert database_check.find_problems(engine) == []
    engine.dispose()


#: Where the command kills itself before the target is committed: the crash point, and the table that it copies then.
KILLED_BEFORE_COMMIT = [
    ("source_sealed", None),
    ("rows_copied", "nodes"),
    ("rows_copied", "audit"),
    ("rows_copied", "runs"),
]


@pytest.mark.parametrize(("point", "table"), [*KILLED_BEFORE_COMMIT, ("target_committed", None)])
def test_a_killed_move_can_be_repeated(point: str, table: str | None, move: Move, tmp_path: Path) -> None:
    assert point in MOVE_POINTS
    crash_file = tmp_path / "crash.json"
    crash_file.write_text(json.dumps([{"point": point, "subject": table, "times": 1}]))
    code, printed = move.migrate(**{CRASH_FILE_VARIABLE: str(crash_file)})
    assert code == -9, printed

    target = open_engine(move.target_url)
    if point == "target_committed":
        assert all_rows(target) == move.rows_of(move.source_url)
    else:
        assert table_copy.find_tables_with_rows(target) == []
    target.dispose()
    refused = move.smith("pause", "--reason", "x")
    assert refused.returncode == 6
    assert "is sealed, because its move to" in refused.stderr
    assert "run `smith db migrate` again" in refused.stderr

    code, printed = move.migrate(**{CRASH_FILE_VARIABLE: str(crash_file)})
    assert code == 0, printed
    assert move.rows_of(move.target_url) == move.rows_of(move.source_url)
    code, printed = move.migrate()
    assert code == 0, "one more call changes nothing"
    assert move.rows_of(move.target_url) == move.rows_of(move.source_url)


def test_after_a_move_the_agent_and_writing_commands_refuse_the_source(move: Move) -> None:
    assert move.migrate()[0] == 0
    contents, target_url = move.rows_of(move.source_url), move.shown_target()
    pending_id = move.smith.json("jobs", "list", "--status", "pending")[0]["id"]
    commands = [
        *WRITING_COMMANDS,
        ("jobs", "cancel", str(pending_id), "--yes"),
        ("run", "--once"),
        ("run", "--once", "--no-supervisor"),
        ("db", "check"),
    ]
    for command in commands:
        done = move.smith(*command, **AGENT_SETTINGS)
        assert done.returncode == 6, (command, done.stdout, done.stderr)
        output = done.stdout + done.stderr
        assert f"was moved to {target_url}" in output, (command, output)
        assert PASSWORD not in output
    assert move.rows_of(move.source_url) == contents
    assert move.smith.json("jobs", "list"), "reading commands work"
    doctor = move.smith("doctor", "--json")
    assert f"was moved to {target_url}" in doctor.stdout


def test_after_unseal_the_source_can_be_used_again(move: Move) -> None:
    assert move.migrate()[0] == 0
    assert move.smith("db", "unseal").returncode == 2, "there is no terminal to ask on"
    done = move.smith.json("db", "unseal", "--yes", "--reason", "put off")
    assert (done["was_sealed"], done["url"]) == (True, move.shown_target())
    move.smith.ok("resume")
    entries = move.smith.json("audit", "list", "--verb", "unseal")
    assert [entry["reason"] for entry in entries] == ["put off"]
    assert move.smith.json("db", "unseal", "--yes")["was_sealed"] is False
    code, printed = move.migrate()
    assert code == 6
    assert "is not empty" in printed


def test_a_target_with_rows_is_refused_before_the_seal(move: Move) -> None:
    engine = open_engine(move.target_url)
    schema.upgrade(engine)
    with transaction(engine) as session:
        nodes.store_agent_start(session, AgentProcess(boot_id="x", host="h", pid=1, version="1", concurrency=1))
    engine.dispose()
    code, printed = move.migrate()
    assert code == 6
    assert "is not empty (rows in nodes)" in printed
    assert move.smith.ok("resume").startswith("resumed"), "the source is not sealed"


def test_a_repeated_move_to_another_target_is_refused(move: Move, tmp_path: Path) -> None:
    assert move.migrate()[0] == 0
    code, printed = move.migrate(**{TARGET_VARIABLE: f"sqlite:///{tmp_path / 'other.db'}"})
    assert code == 6
    assert f"a move to {move.shown_target()} has sealed this database" in printed


def test_a_move_is_refused_during_a_run_by_hand_or_while_an_agent_runs(move: Move) -> None:
    engine = open_engine(move.source_url)
    if engine.dialect.name == "sqlite":
        with exclusive_database(move.source_url):
            code, printed = move.migrate()
        assert (code, "an agent uses this database" in printed) == (6, True)
    else:
        with transaction(engine) as session:
            nodes.store_agent_start(session, AgentProcess(boot_id="runs", host="h", pid=1, version="1", concurrency=1))
        code, printed = move.migrate()
        assert (code, "agent runs on h uses this database" in printed) == (6, True)
        with transaction(engine) as session:
            session.execute(update(AgentProcessRow).values(stopped_at=utc_now()))
    run = {"vmid": 1, "action": "update", "who": "root", "host": "h", "pid": 1}
    with transaction(engine) as session:
        manual_runs.start(session, NewManualRun(ident="by-hand", service_id="s-1", **run), lease_s=300)
    code, printed = move.migrate()
    assert (code, "an operator runs a playbook for service s-1" in printed) == (6, True)
    with transaction(engine) as session:
        session.execute(update(ManualRun).values(lease_until=utc_now() - timedelta(seconds=1)))
    engine.dispose()
    assert move.migrate()[0] == 0


def test_a_password_in_an_argument_is_refused_and_one_in_a_file_is_used(move: Move, tmp_path: Path) -> None:
    refused = move.smith("db", "migrate", "--yes", "--to", f"postgresql://smith:{PASSWORD}@db/smith")
    assert refused.returncode == 2
    assert "--to-file" in refused.stderr
    assert PASSWORD not in refused.stdout + refused.stderr
    file = tmp_path / "url"
    file.write_text(f"{move.target_url}\n")
    code, printed = move.migrate("--to-file", str(file), **{TARGET_VARIABLE: ""})
    assert code == 0, printed
    assert move.smith("db", "migrate", "--yes").returncode == 2, "neither an option nor a variable nor a terminal"


def test_a_wrong_target_is_refused(move: Move) -> None:
    for url in (move.source_url, "mysql://x/y", "no url"):
        code, printed = move.migrate(**{TARGET_VARIABLE: url})
        assert code in (2, 6), printed
        assert "Traceback" not in printed
    assert move.smith.ok("resume").startswith("resumed"), "the source is not sealed"


def test_an_older_schema_is_refused(move: Move) -> None:
    move.smith.ok("db", "downgrade", "--yes")
    code, printed = move.migrate()
    assert (code, "run `smith db upgrade`" in printed) == (6, True), printed


def test_a_backup_does_not_replace_a_database_that_was_moved(tmp_path: Path, postgres: PostgresCluster) -> None:
    smith, backup = Cli(tmp_path), tmp_path / "backup.db"
    smith.submit()
    smith.ok("db", "backup", str(backup))
    with postgres.fresh_database() as url:
        assert smith("db", "migrate", "--yes", "--to", url).returncode == 0
        refused = smith("db", "restore", str(backup), "--yes")
        assert refused.returncode == 6
        assert "was moved to" in refused.stderr
