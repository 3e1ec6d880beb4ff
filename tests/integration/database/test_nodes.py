"""The rows of agent processes in the table `nodes`, on SQLite and on PostgreSQL.

A node is the machine of an agent here, not a Proxmox node. An installation is a data folder on one machine.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import Engine, select, update

from executor.agent.registration import register_agent
from executor.agent.state import AgentState
from executor.database import agent_queries, nodes, pause_scopes, pauses
from executor.database.engine import read_only_session, transaction
from executor.database.nodes import AgentProcess, OperatorLimits
from executor.database.tables.agents import AgentProcessRow
from executor.database.times import utc_now


def test_rows_of_agent_processes_are_pruned_by_the_time_they_were_last_seen(engine: Engine) -> None:
    now = utc_now()
    with transaction(engine) as session:
        for name, seen_at in (("old", now - timedelta(days=9)), ("new", now)):
            session.add(
                AgentProcessRow(
                    id=name,
                    host="h",
                    pid=1,
                    version="1",
                    started_at=now,
                    seen_at=seen_at,
                    concurrency_wanted=1,
                    concurrency=1,
                )
            )
    with transaction(engine) as session:
        assert nodes.prune(session, seen_before=now - timedelta(days=1)) == 1
        assert session.scalars(select(AgentProcessRow.id)).all() == ["new"]


def agent_process(boot_id: str, **changes: Any) -> AgentProcess:
    values = {"host": "h", "pid": 1, "version": "1", "concurrency": 1, "installation_id": "a" * 32} | changes
    return AgentProcess(boot_id=boot_id, **values)


def test_the_earlier_processes_of_an_installation_are_those_of_its_host_with_its_id(engine: Engine) -> None:
    others = [
        agent_process("other host", host="copy"),
        agent_process("other folder", installation_id="b" * 32),
        agent_process("without id", installation_id=None),
    ]
    with transaction(engine) as session:
        for agent in (agent_process("killed"), agent_process("stopped"), *others):
            nodes.store_agent_start(session, agent)
        nodes.store_agent_stop(session, "stopped", "signal")
        restarted = agent_process("restarted")
        nodes.store_agent_start(session, restarted)
        assert nodes.boot_ids_of_earlier_processes(session, restarted) == {"killed", "stopped"}
        nodes.store_ends_of_earlier_processes(session, restarted)
    with read_only_session(engine) as session:
        reasons = {node.id: node.stop_reason for node in session.scalars(select(AgentProcessRow))}
        assert {name: reason for name, reason in reasons.items() if reason} == {"killed": "killed", "stopped": "signal"}
        assert {node.id for node in agent_queries.processes_without_stop_time(session)} == {
            "restarted",
            *(other.boot_id for other in others),
        }


def test_a_process_without_an_installation_id_has_no_earlier_processes(engine: Engine) -> None:
    with transaction(engine) as session:
        for name in ("first", "second"):
            nodes.store_agent_start(session, agent_process(name, installation_id=None))
        assert nodes.boot_ids_of_earlier_processes(session, agent_process("second", installation_id=None)) == set()


def test_the_time_at_which_an_agent_was_last_seen_is_a_time_of_the_databases_clock(engine: Engine) -> None:
    """The clocks of the machines may differ, and each agent fences only while it sees another agent."""
    with transaction(engine) as session:
        nodes.store_agent_start(session, agent_process("a", fences=True))
        session.execute(update(AgentProcessRow).values(seen_at=utc_now() - timedelta(days=1)))
        assert not nodes.has_other_agents(session, "b", within_s=60)
        nodes.store_lease_renewal(session, "a", fences=False)
        assert nodes.has_other_agents(session, "b", within_s=60)
        assert not nodes.has_other_agents(session, "a", within_s=60)
        assert session.scalars(select(AgentProcessRow.fences)).one() is False


def test_the_job_limit_and_the_pause_of_a_node_remain_when_its_agent_is_restarted(engine: Engine) -> None:
    with transaction(engine) as session:
        nodes.store_agent_start(session, agent_process("first", concurrency=8))
        node = session.get_one(AgentProcessRow, "first")
        nodes.set_job_limit(session, node, 3)
        assert pauses.start(session, who="root", reason="new kernel", scope=pause_scopes.scope_of_agent_process(node))
    with transaction(engine) as session:
        nodes.store_agent_start(session, agent_process("second", concurrency=6))
        nodes.store_agent_start(session, agent_process("other", concurrency=6, host="other"))
        nodes.store_agent_start(session, agent_process("without id", concurrency=6, installation_id=None))
        found = {name: nodes.operator_limits(session, name) for name in ("second", "other", "without id", "missing")}
    assert found["second"] == OperatorLimits(is_paused=True, max_jobs=3)
    assert found["without id"] == OperatorLimits(is_paused=False, max_jobs=6)
    assert found["missing"] == OperatorLimits()


def register_and_read_limit(engine: Engine, boot_id: str, concurrency: int) -> int | None:
    """Register a process of the installation; return how many jobs the process may run in parallel."""
    with transaction(engine) as session:
        nodes.store_agent_start(session, agent_process(boot_id, concurrency=concurrency))
        return nodes.operator_limits(session, boot_id).max_jobs


def test_an_operators_job_limit_outlasts_lower_concurrencies_and_deleted_rows_until_it_is_removed(
    engine: Engine,
) -> None:
    """A machine with less memory chooses a lower concurrency, and the pruner deletes rows of ended processes."""
    assert register_and_read_limit(engine, "first", 8) == 8
    with transaction(engine) as session:
        nodes.set_job_limit(session, session.get_one(AgentProcessRow, "first"), 4)
    assert register_and_read_limit(engine, "small", 2) == 2
    with transaction(engine) as session:
        assert nodes.prune(session, seen_before=utc_now() + timedelta(days=1)) == 2
    assert register_and_read_limit(engine, "again", 8) == 4
    with transaction(engine) as session:
        nodes.set_job_limit(session, session.get_one(AgentProcessRow, "again"), None)
    assert register_and_read_limit(engine, "last", 8) == 8


def test_a_process_whose_registration_was_stored_but_got_no_answer_can_register_again(engine: Engine) -> None:
    assert [register_and_read_limit(engine, "first", 8), register_and_read_limit(engine, "first", 8)] == [8, 8]
    with read_only_session(engine) as session:
        assert session.scalars(select(AgentProcessRow.id)).all() == ["first"]


def test_the_job_limit_and_the_pause_of_a_node_apply_before_its_agent_can_claim(engine: Engine) -> None:
    with transaction(engine) as session:
        nodes.store_agent_start(session, agent_process("first", concurrency=8))
        node = session.get_one(AgentProcessRow, "first")
        nodes.set_job_limit(session, node, 3)
        assert pauses.start(session, who="root", reason="new kernel", scope=pause_scopes.scope_of_agent_process(node))
    state = AgentState(agent_id="known")
    register_agent(engine, agent_process("restarted", concurrency=8), state)
    assert (state.is_agent_process_paused, state.max_parallel_jobs, state.may_claim) == (True, 3, False)
