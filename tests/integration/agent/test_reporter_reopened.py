"""The reporter while FulcrumCore opens a job again, so that the job has a new attempt before its report is answered."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
from sqlalchemy import update
from support.outbox_world import Outbox, made
from support.wire_server import Reply, WireServer, reply

from executor.agent.reporter import MAX_FAILED_COMPLETIONS
from executor.database.engine import transaction
from executor.database.tables.jobs import Job

ACCEPTED = reply(200, {})
UNAVAILABLE = reply(503, {"error": "no database"})
COMPLETION_FAILED = reply(500, {"error": "duplicate key"})


def reply_after_new_attempt(outbox: Outbox, answer: bytes) -> Callable[[socket.socket], None]:
    """Return a reply that gives each job the epoch of a new attempt before it sends the answer."""

    def send(sock: socket.socket) -> None:
        with transaction(outbox.engine) as session:
            session.execute(update(Job).values(epoch=Job.epoch + 1))
        sock.sendall(answer)

    return send


@pytest.mark.parametrize(
    ("earlier_replies", "answer"),
    [
        pytest.param([], ACCEPTED, id="the report is accepted"),
        pytest.param([], UNAVAILABLE, id="the report must be repeated"),
        pytest.param(
            [COMPLETION_FAILED] * (MAX_FAILED_COMPLETIONS + 1), ACCEPTED, id="the failure is accepted in its place"
        ),
    ],
)
def test_an_answer_to_the_report_of_an_earlier_attempt_changes_nothing(
    outbox: Outbox, earlier_replies: list[Reply], answer: bytes
) -> None:
    """The result of the new attempt is not reported yet, so it must stay due with its status and without a backoff."""
    job_id = outbox.ended(outbox.ordered(), made())
    with WireServer(*earlier_replies, reply_after_new_attempt(outbox, answer)) as core:
        outbox.restart(core.url)
        outbox.turn(max(len(earlier_replies) - 1, 0))
        before = outbox.row(job_id)
        outbox.turn()
        after = outbox.row(job_id)
    assert after.epoch == before.epoch + 1
    assert (after.status, after.error_code, after.report_state) == ("completed", None, "due")
    assert (after.report_after, after.report_attempts) == (None, before.report_attempts)
