"""An executor whose database is SQLite needs no package for PostgreSQL."""

from __future__ import annotations

import tomllib
from pathlib import Path

from e2e.conftest import MakeLab
from smith_lab.system import outcome_of
from support.deploy_files import PROJECT

#: The drivers that SQLAlchemy can use for PostgreSQL. Their imports fail here, as if they were not installed.
DRIVERS = ("psycopg", "psycopg_binary", "psycopg_pool", "psycopg2", "asyncpg", "pg8000")


def test_no_package_of_postgresql_is_required() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = [text.lower() for text in project["dependencies"]]
    assert not [text for text in required if text.startswith(("psycopg", "asyncpg", "pg8000", "sqlalchemy["))]
    assert any(text.startswith("psycopg") for text in project["optional-dependencies"]["postgres"])


def test_the_executor_runs_jobs_without_a_driver_of_postgresql(make_lab: MakeLab, tmp_path: Path) -> None:
    """`None` in `sys.modules` makes the import of this module fail, as if it were not installed."""
    lines = [f"sys.modules[{name!r}] = None" for name in DRIVERS]
    (tmp_path / "sitecustomize.py").write_text("\n".join(["import sys", *lines, ""]))
    lab = make_lab(PYTHONPATH=str(tmp_path))
    lab.start_executor()
    service_id = lab.order_service("web")
    assert lab.wait_for_jobs(service_id)["status"] == "Stopped"
    for action in ("start", "stop", "delete"):
        assert outcome_of(lab.run_action(service_id, action)) == "Completed"
    assert {job["status"] for job in lab.run_smith_json("jobs", "list")} == {"completed"}
    assert lab.run_smith_json("status")["nodes"]
    assert lab.stop_executor() == 0
