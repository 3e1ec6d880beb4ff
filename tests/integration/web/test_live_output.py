"""The event stream of a job's page.

It sends each line of output once, also if the browser connects again. The number of streams is limited.
"""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import structlog
from support.databases import PostgresCluster
from support.web_jobs import HOSTILE, Filled, end_run, fill, set_story
from support.web_world import TOKEN, WITHIN_S, PagesSite

from executor.web.pages.event_stream import EventStream
from executor.web.streams import MAX_STREAMS

Event = tuple[str, Any, str]


class Stream:
    """One connection that reads the events of a job."""

    def __init__(self, site: PagesSite, job_id: int, *, after: str = "", token: str = TOKEN) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", site.handle.port, WITHIN_S)
        headers = {"Authorization": f"Bearer {token}", "Accept": "text/event-stream"}
        headers |= {"Last-Event-ID": after} if after else {}
        self._connection.request("GET", f"/jobs/{job_id}/events", headers=headers)
        self.response = self._connection.getresponse()

    def close(self) -> None:
        self.response.close()
        self._connection.close()

    def events(self) -> Iterator[Event]:
        """Yield the name, the data and the id of each event, until the stream ends."""
        fields: dict[str, str] = {}
        while line := self.response.readline().decode():
            name, _, value = line.rstrip("\n").partition(": ")
            if name:
                fields[name] = value
            elif "event" in fields:
                yield fields["event"], json.loads(fields["data"]), fields.get("id", "")
                fields = {}

    def next_event(self, name: str, text: str = "") -> Event:
        """Return the next event with this name whose data contains the text."""
        return next(event for event in self.events() if event[0] == name and text in json.dumps(event[1]))


@pytest.fixture
def site_with_jobs(make_pages: Any, tmp_path: Path) -> tuple[PagesSite, Filled]:
    site = make_pages()
    return site, fill(site.engine, tmp_path)


@pytest.fixture(params=["sqlite", "postgresql"])
def site_with_jobs_in_either_database(
    make_pages: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[PagesSite, Filled]]:
    """As `site_with_jobs`, once with SQLite and once with PostgreSQL."""
    with ExitStack() as stack:
        settings = {}
        if request.param == "postgresql":
            postgres: PostgresCluster = request.getfixturevalue("postgres")
            settings["SMITH_DATABASE_URL"] = stack.enter_context(postgres.fresh_database())
        site = make_pages(**settings)
        yield site, fill(site.engine, tmp_path)


def test_a_new_connection_continues_after_the_last_event(site_with_jobs: tuple[PagesSite, Filled]) -> None:
    site, jobs = site_with_jobs
    with closing(Stream(site, jobs.running)) as stream:
        _name, data, position = stream.next_event("output")
        assert data["text"].startswith("TASK [Create the VM]\n")
        assert "\x1b" not in data["text"]
    with jobs.output.open("a", encoding="utf-8") as output:
        output.write("one\ntwo\nhalf of a li")
    with closing(Stream(site, jobs.running, after=position)) as stream:
        _name, data, position = stream.next_event("output")
        assert data["text"] == "one\ntwo\n"
        with jobs.output.open("a", encoding="utf-8") as output:
            output.write("ne\nlast line without its end")
        assert stream.next_event("output")[1]["text"] == "half of a line\n"
        end_run(site.engine, jobs.running)
        rest = list(stream.events())
    assert "".join(data["text"] for name, data, _id in rest if name == "output") == "last line without its end"
    assert rest[-1][0] == "end"


def test_the_stream_sends_the_changes_of_the_timeline_in_the_database(
    site_with_jobs_in_either_database: tuple[PagesSite, Filled],
) -> None:
    site, jobs = site_with_jobs_in_either_database
    with closing(Stream(site, jobs.running)) as stream:
        html = stream.next_event("story")[1]["html"]
        assert "&lt;script&gt;" in html
        assert "<script>" not in html
        assert not any(char in stream.next_event("present", "cloning")[1]["text"] for char in "\x1b\u202e")
        set_story(site.engine, jobs.running, text=f"resizing {HOSTILE}")
        assert stream.next_event("story", "resizing")
        end_run(site.engine, jobs.running)
        assert stream.next_event("end")


def test_an_unusable_position_is_ignored(site_with_jobs: tuple[PagesSite, Filled]) -> None:
    site, jobs = site_with_jobs
    for position in ("other-9:400", "create-1:x", "../../etc/passwd:0", "create-1:999999999999"):
        with closing(Stream(site, jobs.running, after=position)) as stream:
            assert stream.response.status == 200
            assert stream.next_event("story")


def test_the_stream_of_an_ended_or_unknown_job_ends(site_with_jobs: tuple[PagesSite, Filled]) -> None:
    site, jobs = site_with_jobs
    for job_id in (jobs.completed, 999_999, 10**30):
        with closing(Stream(site, job_id)) as stream:
            assert [name for name, _data, _id in stream.events()][-1] == "end"


def test_a_stream_that_crashes_no_longer_counts_as_open() -> None:
    closed: list[int] = []

    async def events() -> AsyncGenerator[bytes, None]:
        yield b": \n\n"
        raise ArithmeticError("a defect")

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(WITHIN_S)
        return {"type": "http.disconnect"}

    async def send(_message: Any) -> None:
        await asyncio.sleep(0)

    with structlog.testing.capture_logs() as logs:
        asyncio.run(EventStream(events(), lambda: closed.append(1))({"type": "http"}, receive, send))
    assert (closed, [entry["event"] for entry in logs]) == ([1], ["event_stream_crashed"])


def test_a_stream_above_the_maximum_is_refused_and_health_is_answered(site_with_jobs: tuple[PagesSite, Filled]) -> None:
    site, jobs = site_with_jobs
    with ExitStack() as stack:
        streams = [stack.enter_context(closing(Stream(site, jobs.running))) for _ in range(MAX_STREAMS)]
        assert {stream.response.status for stream in streams} == {200}
        refused = stack.enter_context(closing(Stream(site, jobs.running)))
        assert refused.response.status == 503
        assert int(refused.response.getheader("Retry-After", "0")) > 0
        assert site.browser().get("/livez").status == 200
        streams[0].close()
        for stream in streams[1:]:
            assert stream.next_event("output")
        end_run(site.engine, jobs.running)
        for stream in streams[1:]:
            assert stream.next_event("end")
    with closing(Stream(site, jobs.running)) as stream:
        assert stream.response.status == 200


def test_a_stream_needs_a_login(site_with_jobs: tuple[PagesSite, Filled]) -> None:
    site, jobs = site_with_jobs
    with closing(Stream(site, jobs.running, token="wrong-wrong-wrong")) as stream:
        assert stream.response.status == 401
