"""Pauses: no agent claims a job while an operator has paused the agents, on SQLite and on PostgreSQL."""

from __future__ import annotations

from sqlalchemy import Engine
from support.databases import submit
from support.job_steps import claim, claimed, finish

from executor.database import agent_queries, pauses
from executor.database.engine import read_only_session, transaction
from executor.redaction import redactor


def pause(engine: Engine, reason: str = "update of pve2") -> bool:
    with transaction(engine) as session:
        return pauses.start(session, who="root", reason=reason)


def test_no_job_is_claimed_while_the_agents_are_paused(engine: Engine) -> None:
    submit(engine)
    assert pause(engine)
    assert claim(engine) is None
    with transaction(engine) as session:
        ended = pauses.end(session)
    assert ended is not None
    assert (ended.who, ended.reason) == ("root", "update of pve2")
    assert claim(engine) is not None


def test_a_running_job_ends_while_the_agents_are_paused(engine: Engine) -> None:
    submit(engine)
    job = claimed(engine)
    pause(engine)
    finish(engine, job)


def test_a_second_pause_and_a_second_resume_change_nothing(engine: Engine) -> None:
    assert pause(engine, "first")
    assert not pause(engine, "second")
    with read_only_session(engine) as session:
        found = agent_queries.find_pause(session)
    assert found is not None
    assert found.reason == "first"
    with transaction(engine) as session:
        assert pauses.end(session) is not None
        assert pauses.end(session) is None


def test_a_reason_with_a_secret_is_stored_masked(engine: Engine) -> None:
    redactor.add("hunter2-in-a-reason")
    try:
        pause(engine, "password hunter2-in-a-reason")
    finally:
        redactor.discard("hunter2-in-a-reason")
    with read_only_session(engine) as session:
        found = agent_queries.find_pause(session)
    assert found is not None
    assert found.reason == "password ********"


def test_the_pause_of_one_node_does_not_prevent_the_claims_of_other_nodes(engine: Engine) -> None:
    """A node is the machine of an agent. The agent reads the pause of its node when it renews its leases."""
    submit(engine)
    with transaction(engine) as session:
        assert pauses.start(session, who="root", reason="new kernel", scope="node:alpha")
        assert agent_queries.find_pause(session) is None
        assert set(agent_queries.process_pauses_by_scope(session)) == {"node:alpha"}
    assert claim(engine) is not None
