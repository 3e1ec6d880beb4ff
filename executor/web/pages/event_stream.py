"""Sends server-sent events, in a response that lasts until the events end or the browser disconnects."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

from starlette.types import Receive, Scope, Send

from executor.log import get_logger

log = get_logger(__name__)

#: A stream ends if its browser reads nothing for this time, because the number of streams is limited.
SEND_TIMEOUT_S = 30.0
#: The headers of the response. `x-accel-buffering` makes a proxy such as nginx pass on each event at once.
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]
#: A comment in the stream, which browsers ignore. It keeps the connection open while there are no events to send.
KEEP_ALIVE = b": \n\n"
#: How long a browser waits before it connects again, in milliseconds.
RETRY_MS = 1000


def encode_event(name: str, data: Any, *, event_id: str = "") -> bytes:
    """Return the bytes of one event. The data is sent as JSON in one line."""
    id_line = f"id: {event_id}\n" if event_id else ""
    return f"{id_line}event: {name}\ndata: {json.dumps(data)}\n\n".encode()


class EventStream:
    """ASGI application of one response, which sends `events`. When the response has ended, `on_end` is called."""

    def __init__(self, events: AsyncGenerator[bytes, None], on_end: Callable[[], None]) -> None:
        self._events = events
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end, or the browser disconnects or reads nothing for SEND_TIMEOUT_S."""
        send_task = asyncio.ensure_future(self._send_events(send))
        disconnect_task = asyncio.ensure_future(_wait_for_disconnect(receive))
        try:
            await asyncio.wait({send_task, disconnect_task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (send_task, disconnect_task):
                task.cancel()
            try:
                await self._wait_for_end(send_task, disconnect_task)
            finally:
                self._on_end()

    @staticmethod
    async def _wait_for_end(*tasks: asyncio.Future[None]) -> None:
        """Wait until the asyncio tasks have ended. Log an unexpected exception, which the response cannot report."""
        for error in await asyncio.gather(*tasks, return_exceptions=True):
            if error is not None and not isinstance(error, asyncio.CancelledError | TimeoutError):
                log.error("event_stream_crashed", exc_info=error)

    async def _send_events(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        try:
            async for data in self._events:
                body = {"type": "http.response.body", "body": data, "more_body": True}
                await asyncio.wait_for(send(body), SEND_TIMEOUT_S)
        finally:
            await self._events.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
