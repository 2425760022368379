"""A plain HTTP/1.1 receiver on a real socket, in a thread of its own. It records raw bytes and answers to order.

It shares no code with the dispatcher: what it saw is what went over the wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tests.support import listening
from tests.support.patience import PATIENCE


@dataclass(frozen=True, kw_only=True)
class Received:
    """One request as it came."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    at: float = field(default_factory=time.monotonic)

    def header(self, name: str) -> str | None:
        """A header's value; None if there is none. Fails if there are several."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) <= 1, f"{name} was sent {len(values)} times"
        return values[0] if values else None

    @property
    def delivery(self) -> str:
        """Its X-Webhook-Delivery."""
        return self.header("X-Webhook-Delivery") or ""

    @property
    def attempt(self) -> int:
        """Its X-Webhook-Attempt."""
        return int(self.header("X-Webhook-Attempt") or 0)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What to answer. `delay` is seconds before it; `raw` replaces the whole answer; `hang` gives none."""

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b"ok"
    delay: float = 0.0
    raw: bytes | None = None
    hang: bool = False


Answerer = Callable[[Received], Reply | Awaitable[Reply]]


class Receiver:
    """A receiver on 127.0.0.1. `answer` decides each reply; by default all is 200. With `tls` it speaks https."""

    def __init__(
        self,
        answer: Answerer | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._answer = answer or (lambda _request: Reply())
        self._host = host
        self._tls = tls
        self.port = port
        self.received: list[Received] = []
        self.connections = 0
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ready = threading.Event()
        self._stop: asyncio.Event | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{'https' if self._tls else 'http'}://{self._host}:{self.port}"

    def wait_for(self, count: int, *, within: float = PATIENCE) -> list[Received]:
        """Wait until so many requests have come, and return them all."""
        with self._changed:
            enough = self._changed.wait_for(lambda: len(self.received) >= count, within)
            assert enough, f"{len(self.received)} of {count} requests came within {within} s"
            return list(self.received)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(PATIENCE)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        tasks: set[asyncio.Task[None]] = set()

        def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._connection(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(on_connection, self._host, self.port, backlog=2048, ssl=self._tls)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        await listening.close(server)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._exchange(reader, writer):
                    pass
        finally:
            writer.close()
            if self._tls:
                # Its goodbye takes a turn of the loop or two; nobody waits for the other side's.
                writer.transport.abort()
                await asyncio.sleep(0)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ", 2)
        headers = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in head[1:] if line))
        length = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
        request = Received(method=method, target=target, headers=headers, body=await reader.readexactly(length))
        decided = self._answer(request)
        with self._changed:
            self.received.append(request)
            self._changed.notify_all()
        reply = decided if isinstance(decided, Reply) else await decided
        if reply.hang:
            await asyncio.Event().wait()
        await asyncio.sleep(reply.delay)
        if reply.raw is not None:
            writer.write(reply.raw)
            await writer.drain()
            return False
        lines = [f"HTTP/1.1 {reply.status} X", f"Content-Length: {len(reply.body)}"]
        lines += [f"{name}: {value}" for name, value in reply.headers]
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + reply.body)
        await writer.drain()
        return True
