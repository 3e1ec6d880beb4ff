"""The move of a database from SQLite to PostgreSQL or back: the seal of the source, and the copy of its rows.

A sealed database refuses every change, so that no change is made to the source after the copy.
"""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, insert, inspect, select, text
from support.busy_history import all_rows, fill_every_table
from support.databases import PostgresCluster, new_job, submit
from support.table_contents import shape

from executor.database import database_check, job_queue, move_queries, moves, nodes, pauses, schema, table_copy
from executor.database.engine import open_engine, read_only_session, transaction
from executor.database.nodes import AgentProcess
from executor.database.postgresql import SESSION_SETTINGS, open_postgresql_engine
from executor.database.tables.all_tables import METADATA
from executor.database.tables.audit import AuditEntry
from executor.database.tables.jobs import Job, ManualRun
from executor.database.tables.moves import Move
from executor.database.times import utc_now
from executor.errors import DatabaseError, StatementRefused
from executor.model import MoveDirection

TARGET_URL = "postgresql+psycopg://smith@db.example.net/smith"
#: The copied rows have this size, and there are more of them than fit into MAX_MEMORY_BYTES.
LARGE_TEXT_CHARS, LARGE_ROW_COUNT, MAX_MEMORY_BYTES = 20_000, 4 * table_copy.ROWS_PER_BATCH, 12 * 2**20


@pytest.fixture
def source_and_target(
    request: pytest.FixtureRequest, tmp_path: Path, postgres: PostgresCluster
) -> Iterator[tuple[Engine, Engine]]:
    """Open an SQLite file and a PostgreSQL database, both migrated. The parameter says which one is the target."""
    with postgres.fresh_database() as url:
        engines = [open_engine(f"sqlite:///{tmp_path / 'smith.db'}"), open_engine(url)]
        schema.upgrade(engines[0])
        source, target = engines if request.param == "to postgresql" else reversed(engines)
        yield source, target
        for engine in engines:
            engine.dispose()


in_both_directions = pytest.mark.parametrize("source_and_target", ["to postgresql", "to sqlite"], indirect=True)


def no_check(_session: Any) -> None:
    """Accept any use of the database."""


def seal(engine: Engine) -> Move:
    with transaction(engine) as session:
        return moves.seal(session, target_url=TARGET_URL, who="root", refuse_if_in_use=no_check)


def seal_and_copy(source: Engine, target: Engine, on_progress: Callable[[str, int], None] = lambda *_: None) -> Move:
    move = seal(source)
    table_copy.copy_tables(source, target, move, on_progress)
    return move


@in_both_directions
def test_every_row_of_every_table_is_copied(source_and_target: tuple[Engine, Engine]) -> None:
    source, target = source_and_target
    fill_every_table(source)
    move = seal_and_copy(source, target)
    found = all_rows(target)
    assert found == all_rows(source)
    assert [name for name, table_rows in found.items() if not table_rows] == [], "each table must have a row here"
    assert set(found) | {"moves", schema.ALEMBIC_TABLE} == set(inspect(source).get_table_names())
    assert table_copy.is_copy_committed(target, move.id)
    assert not table_copy.is_copy_committed(source, move.id)


@in_both_directions
def test_new_rows_have_higher_ids_than_the_copied_ones(source_and_target: tuple[Engine, Engine]) -> None:
    source, target = source_and_target
    fill_every_table(source)
    seal_and_copy(source, target)
    highest = {name: table_rows[-1] for name, table_rows in all_rows(target).items()}
    assert highest
    with read_only_session(target) as session:
        last_job_id = max(session.scalars(select(Job.id)))
        last_entry_id = max(session.scalars(select(AuditEntry.id)))
    assert submit(target) == last_job_id + 1
    with transaction(target) as session:
        entry = AuditEntry(at=utc_now(), who="root", verb="pause", subject_kind="agents", subject_id="all")
        session.add(entry)
        session.flush()
        assert entry.id == last_entry_id + 1
    with target.connect() as connection:
        for table in moves.tables_to_move():
            column = table.autoincrement_column
            if column is not None and target.dialect.name == "postgresql":
                assert connection.scalar(text(f"SELECT nextval(pg_get_serial_sequence('{table.name}', 'id'))")) > 1


@in_both_directions
def test_a_target_with_a_row_is_refused_and_not_changed(source_and_target: tuple[Engine, Engine]) -> None:
    source, target = source_and_target
    fill_every_table(source)
    job_id = submit(target)
    with pytest.raises(DatabaseError, match=r"is not empty \(rows in jobs\)"):
        seal_and_copy(source, target)
    assert [row[0] for row in all_rows(target)["jobs"]] == [job_id]
    assert table_copy.find_tables_with_rows(target) == ["jobs"]


@in_both_directions
def test_a_copy_that_fails_leaves_an_empty_target(source_and_target: tuple[Engine, Engine]) -> None:
    def fail_at_audit(table: str, _row_count: int) -> None:
        if table == "audit":
            raise DatabaseError("the connection was lost")

    source, target = source_and_target
    fill_every_table(source)
    with pytest.raises(DatabaseError, match="the connection was lost"):
        seal_and_copy(source, target, fail_at_audit)
    assert table_copy.find_tables_with_rows(target) == []
    with read_only_session(source) as session:
        move = move_queries.find_sealing_move(session.connection())
    assert move is not None
    table_copy.copy_tables(source, target, move, lambda *_: None)
    assert all_rows(target) == all_rows(source)


@pytest.mark.parametrize("source_and_target", ["to postgresql"], indirect=True)
def test_rows_that_the_target_changes_during_the_copy_are_detected(source_and_target: tuple[Engine, Engine]) -> None:
    source, target = source_and_target
    fill_every_table(source)
    with target.begin() as connection:
        body = "BEGIN NEW.operator_detail = 'changed'; RETURN NEW; END"
        connection.execute(text(f"CREATE FUNCTION change() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$"))
        trigger_clause = "FOR EACH ROW WHEN (NEW.id = 3) EXECUTE FUNCTION change()"
        connection.execute(text(f"CREATE TRIGGER change BEFORE INSERT ON jobs {trigger_clause}"))
    with pytest.raises(DatabaseError, match="the rows of the table jobs differ"):
        seal_and_copy(source, target)
    assert table_copy.find_tables_with_rows(target) == []


@pytest.mark.parametrize("source_and_target", ["to postgresql"], indirect=True)
def test_the_error_about_a_value_that_the_target_refuses_names_the_table(
    source_and_target: tuple[Engine, Engine],
) -> None:
    source, target = source_and_target
    submit(source, fulcrum_id="x" * 60)  # SQLite does not limit the length of a text
    with pytest.raises(DatabaseError, match=r"the target refused rows of the table jobs: .*too long"):
        seal_and_copy(source, target)


@in_both_directions
def test_a_second_copy_to_the_same_database_is_refused_while_the_first_one_is_running(
    source_and_target: tuple[Engine, Engine],
) -> None:
    source, target = source_and_target
    if target.dialect.name == "sqlite":
        return  # the lock of the SQLite file, which the command takes, already prevents a second copy
    submit(source)

    def copy_again(_table: str, _row_count: int) -> None:
        with read_only_session(source) as session:
            move = move_queries.find_sealing_move(session.connection())
        assert move is not None
        with pytest.raises(DatabaseError, match="another command is copying rows"):
            table_copy.copy_tables(source, target, move, lambda *_: None)

    seal_and_copy(source, target, copy_again)


@in_both_directions
def test_a_copy_does_not_load_all_rows_into_memory(source_and_target: tuple[Engine, Engine]) -> None:
    source, target = source_and_target
    row = {"service_id": "s", "action": "a", "who": "w", "host": "h", "pid": 1, "output": "x" * LARGE_TEXT_CHARS}
    times = {"started_at": utc_now(), "lease_until": utc_now(), "ended_at": utc_now()}
    with transaction(source) as session:
        session.execute(
            insert(ManualRun.__table__),
            [row | times | {"ident": f"run-{number}"} for number in range(LARGE_ROW_COUNT)],
        )
    tracemalloc.start()
    try:
        seal_and_copy(source, target)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert LARGE_TEXT_CHARS * LARGE_ROW_COUNT > MAX_MEMORY_BYTES > peak_bytes


@in_both_directions
def test_a_copy_may_take_longer_than_postgresqls_limits(source_and_target: tuple[Engine, Engine]) -> None:
    def with_short_limit(engine: Engine) -> Engine:
        if engine.dialect.name == "sqlite":
            return engine
        settings = {**SESSION_SETTINGS, "idle_in_transaction_session_timeout": "200ms"}
        return open_postgresql_engine(engine.url, pool_size=1, max_overflow=1, session_settings=settings)

    source, target = source_and_target
    fill_every_table(source)
    move, waits = seal(source), iter([0.6])
    short_source, short_target = with_short_limit(source), with_short_limit(target)
    table_copy.copy_tables(short_source, short_target, move, lambda *_: time.sleep(next(waits, 0.0)))
    assert all_rows(target) == all_rows(source)
    short_source.dispose()
    short_target.dispose()


# --- the seal ---------------------------------------------------------------------------------------------------------


def test_a_sealed_database_refuses_every_change_of_every_table(engine: Engine) -> None:
    before, shape_before = database_check.find_problems(engine), shape(engine)
    fill_every_table(engine)
    seal(engine)
    contents = all_rows(engine)
    for table in METADATA.sorted_tables:
        if table.name == "moves":
            continue
        insertion = f"INSERT INTO {table.name} SELECT * FROM {table.name}"  # noqa: S608
        for statement in (f"DELETE FROM {table.name}", insertion):  # noqa: S608
            with pytest.raises(StatementRefused, match="this database were moved"), transaction(engine) as session:
                session.execute(text(statement))
    assert all_rows(engine) == contents
    (problem,) = database_check.find_problems(engine)
    assert TARGET_URL in problem
    with transaction(engine) as session:
        move = moves.unseal(session, who="root", reason="the move is postponed")
    assert move is not None
    assert database_check.find_problems(engine) == before
    assert shape(engine) == shape_before
    with transaction(engine) as session:
        assert pauses.end(session) is not None
        verbs = session.scalars(select(AuditEntry.verb).where(AuditEntry.subject_kind == "database"))
        assert list(verbs) == ["seal", "unseal"]
        assert moves.unseal(session, who="root", reason="") is None


def test_an_agent_that_was_suspended_during_the_seal_changes_nothing(postgres_engine: Engine) -> None:
    """The connection of the agent and the row of its process existed before the seal."""
    agent = AgentProcess(boot_id="old", host="h", pid=1, version="1", concurrency=1)
    with transaction(postgres_engine) as session:
        nodes.store_agent_start(session, agent)
    submit(postgres_engine)
    try:
        seal(postgres_engine)
        with pytest.raises(StatementRefused), transaction(postgres_engine) as session:
            job_queue.claim(session, "old", lease_s=30)
        with pytest.raises(StatementRefused), transaction(postgres_engine) as session:
            nodes.store_lease_renewal(session, "old", fences=True)
    finally:
        with transaction(postgres_engine) as session:
            moves.unseal(session, who="root", reason="")


def test_the_seal_waits_for_a_transaction_that_changes_the_database(engine: Engine) -> None:
    moved: list[Move] = []
    thread = threading.Thread(target=lambda: moved.append(seal(engine)))
    with transaction(engine) as session:
        job_id = job_queue.submit(session, new_job())
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
    thread.join(60)
    assert len(moved) == 1
    assert [row[0] for row in all_rows(engine)["jobs"]] == [job_id]
    with transaction(engine) as session:
        moves.unseal(session, who="root", reason="")


def test_a_check_that_fails_leaves_the_database_unsealed(engine: Engine) -> None:
    def refuse(_session: Any) -> None:
        raise DatabaseError("an agent runs")

    with pytest.raises(DatabaseError, match="an agent runs"), transaction(engine) as session:
        moves.seal(session, target_url=TARGET_URL, who="root", refuse_if_in_use=refuse)
    assert move_queries.why_sealed(engine) == ""
    assert submit(engine)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://smith:hunter2@db/smith",
        "postgresql://smith@db/smith?password=hunter2",
        "postgresql+psycopg://smith:hunter2@db/smith?sslmode=require&sslpassword=hunter2",
    ],
)
def test_the_stored_url_has_no_password(url: str) -> None:
    shown = move_queries.url_without_password(url)
    assert "hunter2" not in shown
    assert shown.partition("?")[0].endswith("://smith@db/smith")


def test_the_names_of_the_move_directions_fit_into_their_column() -> None:
    assert all(len(direction) <= Move.__table__.c.direction.type.length for direction in MoveDirection)
