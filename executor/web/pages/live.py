"""The live part of the page of a job: its timeline and the output of its runs, as server-sent events.

A viewer is a browser that shows the page of a job. The agent reads the job from the database once per second, for all
viewers of the job together. It reads the output for each viewer separately, and continues at the position after the
last line that the viewer has received. So a viewer that connects again gets each line once.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from executor.errors import DatabaseError
from executor.web.pages.event_stream import KEEP_ALIVE, RETRY_MS, EventStream, encode_event
from executor.web.pages.live_jobs import JOB_READ_INTERVAL_S, JobReader, JobSnapshot
from executor.web.pages.output_reader import OutputReader
from executor.web.pages.parts import PageContext

#: A stream ends after this time. The browser then connects again, so the server checks again that the user may read
#: the job.
MAX_STREAM_S = 300.0
#: If nothing was sent to a viewer for this time, the viewer gets KEEP_ALIVE, a comment that browsers ignore.
KEEP_ALIVE_S = 15.0
#: The time after which a viewer should try again, if there are too many streams.
RETRY_AFTER_S = 10


async def stream_job_events(context: PageContext, request: Request) -> ASGIApp:
    """Return the response that sends the events of a job, or a response 503 if there are too many streams."""
    streams = context.server.streams
    if streams.is_full:
        headers = {"Retry-After": str(RETRY_AFTER_S)}
        return JSONResponse({"error": "too many viewers"}, status_code=503, headers=headers)
    if request.method == "HEAD":
        return Response(media_type="text/event-stream")
    # The position after the last line that the viewer has received; '' for a new viewer. After a lost connection, the
    # browser connects again and sends the position in the header Last-Event-ID. If the server refuses the request, the
    # browser gives up. Then the page's script opens a new stream with the position in the query parameter `after`.
    position = request.headers.get("last-event-id") or request.query_params.get("after", "")
    # `context.agent_view()` returns the parts of the agent that the web pages read, such as its database.
    reader = context.live_jobs.add_viewer(context.agent_view(), context.renderer, request.path_params["job_id"])
    streams.add_stream()

    def on_stream_end() -> None:
        streams.remove_stream()
        context.live_jobs.remove_viewer(reader)

    return EventStream(_yield_events(context, reader, position), on_stream_end)


async def _yield_events(context: PageContext, reader: JobReader, position: str) -> AsyncGenerator[bytes, None]:
    viewer = _Viewer(OutputReader(position))
    ends_at = time.monotonic() + MAX_STREAM_S
    try:
        yield f"retry: {RETRY_MS}\n\n".encode()
        while time.monotonic() < ends_at:
            snapshot = await reader.latest_snapshot()  # None if the job does not exist
            if snapshot is not None:
                for data in await run_in_threadpool(viewer.new_events, snapshot):
                    yield data
            if snapshot is None or viewer.has_received_everything(snapshot):
                yield encode_event("end", {})
                return
            # `wait_for_stop` waits at most this interval. It returns True if the server is stopping.
            if not viewer.may_have_more_output and await context.server.streams.wait_for_stop(JOB_READ_INTERVAL_S):
                return
    except DatabaseError:
        return  # the browser connects again


class _Viewer:
    """One viewer of a job. The attributes contain the values that the viewer received last."""

    def __init__(self, output_reader: OutputReader) -> None:
        self._output_reader = output_reader
        self._timeline_html = ""
        self._current_state_text = ""
        #: The ident of a run whose output is not on this machine; '' if no output is missing.
        self._run_ident_with_missing_output = ""
        self._sent_at = time.monotonic()
        #: True if the last call of `new_events` returned output. More may follow, so the next call is made at once.
        self.may_have_more_output = False

    def new_events(self, snapshot: JobSnapshot) -> list[bytes]:
        """Return the events that the viewer has not received, and treat them as received from now on.

        After KEEP_ALIVE_S without events, return KEEP_ALIVE. The names of the events and their data are:

        - `output`: a part of the output of a run
        - `missing`: the ident of the run whose output is not on this machine; '' if no output is missing now
        - `story`: the timeline of the job
        - `present`: the text about the current state of the job
        """
        parts = self._output_reader.read(snapshot.outputs)
        self.may_have_more_output = bool(parts)
        events = [
            encode_event("output", {"run": part.ident, "text": part.text}, event_id=part.position) for part in parts
        ]
        if self._output_reader.run_ident_with_missing_output != self._run_ident_with_missing_output:
            self._run_ident_with_missing_output = self._output_reader.run_ident_with_missing_output
            events.append(encode_event("missing", {"run": self._run_ident_with_missing_output}))
        if snapshot.timeline_html != self._timeline_html:
            self._timeline_html = snapshot.timeline_html
            events.append(encode_event("story", {"html": snapshot.timeline_html}))
        if snapshot.current_state_text != self._current_state_text:
            self._current_state_text = snapshot.current_state_text
            events.append(encode_event("present", {"text": snapshot.current_state_text}))
        if not events and time.monotonic() - self._sent_at > KEEP_ALIVE_S:
            events.append(KEEP_ALIVE)
        if events:
            self._sent_at = time.monotonic()
        return events

    def has_received_everything(self, snapshot: JobSnapshot) -> bool:
        """Return whether the job has ended and the viewer has received everything that this machine can send."""
        return (
            snapshot.has_job_ended
            and not self.may_have_more_output
            and (self._output_reader.has_read_all_outputs or bool(self._run_ident_with_missing_output))
        )
