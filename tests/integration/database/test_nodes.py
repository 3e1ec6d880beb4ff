"""The rows of agent processes, on SQLite and on PostgreSQL."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Engine, select

from executor.database import nodes
from executor.database.engine import transaction
from executor.database.tables import Node, utc_now


def test_nodes_are_pruned_by_the_time_they_were_last_seen(engine: Engine) -> None:
    now = utc_now()
    with transaction(engine) as session:
        for name, seen_at in (("old", now - timedelta(days=9)), ("new", now)):
            session.add(
                Node(
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
        assert session.scalars(select(Node.id)).all() == ["new"]
