"""`smith nodes`: what `list` shows of the agents' processes, and what `drain`, `resume` and `limit` store for them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update
from support.cli_world import Cli, claim

from executor.database import nodes
from executor.database.engine import read_only_session
from executor.database.nodes import AgentProcess, OperatorLimits
from executor.database.tables.agents import AgentProcessRow
from executor.database.times import utc_now

HOSTS = ("alpha", "beta")


@pytest.fixture
def smith(tmp_path: Path) -> Cli:
    """Return a command line whose database has two running agent processes."""
    cli = Cli(tmp_path)
    with cli.database_session() as session:
        for name in HOSTS:
            boot_id = f"{name}-1-abc"
            process = AgentProcess(
                boot_id=boot_id, host=name, pid=1, version="1", concurrency=8, installation_id=name * 4
            )
            nodes.store_agent_start(session, process)
    return cli


def operator_limits(smith: Cli, name: str) -> OperatorLimits:
    with smith.engine() as engine, read_only_session(engine) as session:
        return nodes.operator_limits(session, f"{name}-1-abc")


def list_nodes(smith: Cli, *options: str) -> dict[str, dict[str, object]]:
    return {row["host"]: row for row in smith.json("nodes", "list", *options)}


def test_the_list_shows_jobs_slots_and_state(smith: Cli) -> None:
    smith.submit()
    with smith.database_session() as session:
        lease = claim(session)
        old = utc_now() - timedelta(days=1)
        session.execute(update(AgentProcessRow).where(AgentProcessRow.host == "beta").values(seen_at=old))
        session.execute(update(AgentProcessRow).where(AgentProcessRow.host == "alpha").values(id=lease.owner))
    nodes_by_host = list_nodes(smith)
    assert {name: (row["state"], row["jobs"], row["concurrency"]) for name, row in nodes_by_host.items()} == {
        "alpha": ("running", 1, 8),
        "beta": ("vanished", 0, 8),
    }
    assert "vanished" in smith.ok("nodes", "list")
    with smith.database_session() as session:
        nodes.store_agent_stop(session, "beta-1-abc", "signal")
    assert set(list_nodes(smith)) == {"alpha"}
    assert set(list_nodes(smith, "--all")) == {"alpha", "beta"}


def test_a_drained_agent_process_is_paused_and_the_other_one_is_not(smith: Cli) -> None:
    assert smith("nodes", "drain", "alpha").returncode == 2, "a reason is needed"
    assert "it runs no job" in smith.ok("nodes", "drain", "alpha", "--reason", "new kernel")
    assert (operator_limits(smith, "alpha").is_paused, operator_limits(smith, "beta").is_paused) == (True, False)
    assert list_nodes(smith)["alpha"]["state"] == "paused"
    assert "new kernel" in smith.ok("nodes", "list")
    assert "already drained" in smith.ok("nodes", "drain", "alpha", "--reason", "again")
    assert smith.json("status")["paused"] is None, "not all agents are paused"
    assert "resumed" in smith.ok("nodes", "resume", "alpha")
    assert "was not drained" in smith.ok("nodes", "resume", "alpha")
    assert not operator_limits(smith, "alpha").is_paused
    verbs = [(entry["verb"], entry["subject_kind"]) for entry in smith.json("audit", "list")]
    assert verbs == [("resume", "agents"), ("drain", "agents")]


def test_a_limit_above_the_concurrency_of_an_agent_process_is_lowered_to_it(smith: Cli) -> None:
    assert smith.json("nodes", "limit", "alpha", "3")["max_jobs"] == 3
    assert operator_limits(smith, "alpha").max_jobs == 3
    assert "3 of 8" in smith.ok("nodes", "list")
    assert smith.json("nodes", "limit", "alpha", "30")["max_jobs"] == 8
    smith.ok("nodes", "limit", "alpha", "2")
    assert smith.json("nodes", "limit", "alpha", "--reset")["max_jobs"] == 8
    assert operator_limits(smith, "beta").max_jobs == 8
    for wrong in ((), ("4", "--reset"), ("0",)):
        assert smith("nodes", "limit", "alpha", *wrong).returncode == 2


def test_an_agent_process_is_named_by_its_host_or_the_beginning_of_its_id(smith: Cli) -> None:
    assert smith.json("nodes", "limit", "beta-1", "4")["node"] == "beta-1-abc"
    assert "no agent process" in smith("nodes", "resume", "gamma").stderr
    with smith.database_session() as session:
        session.execute(update(AgentProcessRow).values(host="same"))
    assert "several agent processes" in smith("nodes", "resume", "same").stderr
