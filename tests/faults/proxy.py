"""A TCP proxy with injectable faults: a partition between the executor and FulcrumCore, Proxmox or PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: How the proxy handles connections: it forwards, refuses, delivers nothing, or delays each read by up to MAX_DELAY_S.
MODES = ("pass", "refuse", "hang", "slow")
READ_BYTES = 65536
MAX_DELAY_S = 0.2


class Proxy:
    """Forwards connections to a port, or to a Unix socket. Any thread may change `mode` at any time."""

    def __init__(self, target: int | Path) -> None:
        self.port = 0
        self.mode = "pass"
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()

    def set_mode(self, mode: str) -> None:
        """Switch to a mode. `refuse` and `hang` also cut the open connections."""
        self.mode = mode
        if mode in ("refuse", "hang"):
            self._loop.call_soon_threadsafe(self._abort_connections)

    def _abort_connections(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, started: threading.Event) -> None:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        async with server:
            await server.serve_forever()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if self.mode == "refuse":
                return
            target_reader, target = await self._connect()
            self._writers.add(target)
            try:
                await asyncio.gather(self._copy(reader, target), self._copy(target_reader, writer))
            finally:
                self._writers.discard(target)
                target.close()
        except OSError:
            pass  # one end has closed the connection: expected here
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._target, Path):
            return await asyncio.open_unix_connection(self._target)
        return await asyncio.open_connection("127.0.0.1", self._target)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(READ_BYTES):
            while self.mode == "hang":
                await asyncio.sleep(0.05)
            if self.mode == "slow":
                await asyncio.sleep(random.uniform(0, MAX_DELAY_S))  # noqa: S311 (noise)
            writer.write(data)
            await writer.drain()
        writer.close()

    def run(self, started: threading.Event) -> None:
        """Serve connections until `stop` is called."""
        asyncio.set_event_loop(self._loop)
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._serve(started))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def stop(self) -> None:
        """Stop listening and cut every connection."""
        self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self._abort_connections()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()


@contextmanager
def running_proxy(target: int | Path) -> Iterator[Proxy]:
    """Run a proxy while the block runs."""
    proxy, started = Proxy(target), threading.Event()
    thread = threading.Thread(target=proxy.run, args=(started,), name="proxy", daemon=True)
    thread.start()
    started.wait(10)
    try:
        yield proxy
    finally:
        proxy.stop()
        thread.join(10)
