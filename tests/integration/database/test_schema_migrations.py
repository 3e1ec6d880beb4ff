"""The migrations of the schema, on SQLite and on PostgreSQL."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, inspect, select, text
from support.databases import row, submit

from executor.database import database_check, job_queue, job_runs, mappings, revisions, schema
from executor.database.engine import (
    read_only_session,
    transaction,
)
from executor.database.indexes import METADATA
from executor.database.tables.jobs import Run
from executor.errors import DatabaseError


def tables(engine: Engine) -> set[str]:
    return set(inspect(engine).get_table_names()) - {"alembic_version"}


@pytest.fixture(params=["sqlite", "postgresql"])
def own_engine(request: pytest.FixtureRequest) -> Engine:
    """Open an SQLite or PostgreSQL database for one test only."""
    name = "sqlite_engine" if request.param == "sqlite" else "postgres_engine_of_one_test"
    found: Engine = request.getfixturevalue(name)
    return found


def test_an_empty_database_is_migrated_to_the_newest_schema(engine_of_missing_file: Engine) -> None:
    engine = engine_of_missing_file
    assert (schema.current_revision(engine), len(database_check.find_problems(engine))) == (None, 1)
    schema.upgrade(engine)
    assert (schema.current_revision(engine), database_check.find_problems(engine)) == (revisions.head_revision(), [])
    assert tables(engine) == set(METADATA.tables)


def test_the_schema_can_be_downgraded_and_upgraded_and_a_downgrade_by_one_step_keeps_the_rows(
    own_engine: Engine,
) -> None:
    """From the newest schema one step back, back to an empty database, and forwards again."""
    job_id = submit(own_engine)
    schema.upgrade(own_engine)
    assert row(own_engine, job_id).status == "pending"
    schema.downgrade(own_engine)
    assert schema.current_revision(own_engine) != revisions.head_revision()
    with own_engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM jobs")) == 1
    schema.downgrade(own_engine, "base")
    assert (schema.current_revision(own_engine), tables(own_engine)) == (None, set())
    schema.upgrade(own_engine)
    assert database_check.find_problems(own_engine) == []
    submit(own_engine)


def test_a_mapping_pending_deletion_is_active_for_a_version_without_a_grace_period(own_engine: Engine) -> None:
    with transaction(own_engine) as session:
        mapping = mappings.reserve(session, service_id="s", cluster="c", vmid=100, name="n", kind="lxc")
        assert mapping is not None
        mappings.apply_result(session, mapping.id, {"status": "stopped", "delete_at": 4_000_000_000})
    schema.downgrade(own_engine, "0002")
    with own_engine.connect() as connection:
        assert connection.scalar(text("SELECT state FROM mappings")) == "active"
    schema.upgrade(own_engine)
    with read_only_session(own_engine) as session:
        assert (
            mappings.active_mappings(session)[0].kind == "qemu"
        )  # the older version has no such column, so the downgrade deletes the kind


def test_the_migrations_create_the_tables_of_the_models(own_engine: Engine) -> None:
    with own_engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences = compare_metadata(context, METADATA)
    # On SQLite Alembic cannot read an index with an expression; the next test compares all of them.
    assert [change for change in differences if "ix_jobs_to_claim" not in str(change)] == []


def test_the_migrations_create_the_indexes_of_the_models(own_engine: Engine) -> None:
    """Alembic compares neither conditions nor expressions of indexes, and our claims depend on them."""
    migrated = index_definitions(own_engine)
    schema.downgrade(own_engine, "base")
    METADATA.create_all(own_engine)
    assert index_definitions(own_engine) == migrated
    assert "ix_jobs_one_processing_per_service" in migrated


def index_definitions(engine: Engine) -> dict[str, str]:
    query = {
        "sqlite": "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL",
        "postgresql": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    }[engine.dialect.name]
    with engine.connect() as connection:
        found = {name: " ".join(sql.split()) for name, sql in connection.execute(text(query))}
    return {name: sql for name, sql in found.items() if not name.startswith("alembic_version")}


def test_a_schema_of_a_newer_version_is_refused_and_not_changed(own_engine: Engine) -> None:
    with own_engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for use_schema in (
        schema.upgrade,
        schema.downgrade,
        schema.refuse_newer_or_foreign_schema,
        database_check.find_problems,
    ):
        with pytest.raises(DatabaseError, match=r"has schema 9999, which this version .* does not know: run the newer"):
            use_schema(own_engine)
    assert schema.current_revision(own_engine) == "9999"


def test_the_check_of_a_database_without_a_schema_names_the_command_that_creates_it(own_engine: Engine) -> None:
    schema.downgrade(own_engine, "base")
    assert database_check.find_problems(own_engine) == [
        f"schema is empty, this version needs {revisions.head_revision()}: run `smith db upgrade`"
    ]


def test_agents_that_start_at_the_same_time_migrate_the_database_once(own_engine: Engine) -> None:
    schema.downgrade(own_engine, "base")
    barrier = threading.Barrier(4)
    failures: list[BaseException] = []

    def start() -> None:
        barrier.wait()
        try:
            schema.upgrade(own_engine)
        except BaseException as error:  # the main thread checks it
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (failures, database_check.find_problems(own_engine)) == ([], [])


def test_rebuilding_a_table_keeps_the_rows_that_refer_to_it(
    sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On SQLite, Alembic drops a table to change a column. With foreign keys on, this would delete every run."""
    migrations = tmp_path / "migrations"
    shutil.copytree(revisions.MIGRATIONS_FOLDER, migrations, ignore=shutil.ignore_patterns("__pycache__"))
    (migrations / "versions" / "9000_rebuild.py").write_text(
        f"from alembic import op\nimport sqlalchemy as sa\n"
        f"revision, down_revision = '9000', {revisions.head_revision()!r}\n"
        "def upgrade():\n    with op.batch_alter_table('jobs', recreate='always') as batch:\n"
        "        batch.alter_column('action', type_=sa.String(120))\n"
        "def downgrade():\n    pass\n"
    )
    submit(sqlite_engine)
    with transaction(sqlite_engine) as session:
        job = job_queue.claim(session, "me", lease_s=30)
        assert job is not None
        job_runs.store_run_start(session, job_queue.lease_of(job), run_ident="create-1", playbook="create.yml")
    monkeypatch.setattr(revisions, "MIGRATIONS_FOLDER", migrations)
    schema.upgrade(sqlite_engine)
    with read_only_session(sqlite_engine) as session:
        assert session.scalars(select(Run.ident)).all() == ["create-1"]
        assert session.scalar(text("PRAGMA foreign_keys")) == 1
    assert database_check.find_problems(sqlite_engine) == []


def test_a_renamed_critical_job_keeps_its_row_and_replaces_the_row_of_another_version(
    own_engine: Engine,
) -> None:
    def critical_jobs() -> list[tuple[str, int]]:
        with own_engine.connect() as connection:
            return [(name, runs) for name, runs in connection.execute(text("SELECT name, runs FROM critical_jobs"))]

    def insert(name: str, runs: int) -> None:
        statement = "INSERT INTO critical_jobs (name, interval_s, failures, runs) VALUES (:name, 60, 0, :runs)"
        with own_engine.begin() as connection:
            connection.execute(text(statement), {"name": name, "runs": runs})

    schema.downgrade(own_engine, "0004")
    insert("DestroyDoomed", 3)
    schema.upgrade(own_engine)
    assert critical_jobs() == [("PurgeDeletedVms", 3)]
    insert("DestroyDoomed", 4)
    schema.downgrade(own_engine, "0004")
    assert critical_jobs() == [("DestroyDoomed", 3)]
    insert("PurgeDeletedVms", 5)
    schema.upgrade(own_engine)
    assert critical_jobs() == [("PurgeDeletedVms", 3)]
