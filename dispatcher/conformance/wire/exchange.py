"""One request, and the means to answer it: in good HTTP, or byte by byte."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from dispatcher.conformance.wire.connection import Connection
from dispatcher.conformance.wire.incoming import HEADER
from dispatcher.conformance.wire.requests import Received, Reply


class Exchange:
    """One request, and the means to answer it well or badly.

    All that write raise ConnectionError when the peer has gone, or does not read for too long. A behaviour may let
    it through.
    """

    def __init__(self, request: Received, connection: Connection, *, keeps_alive: bool) -> None:
        self.request = request
        self._connection = connection
        self._keeps_alive = keeps_alive
        #: something was written; what comes next is no first answer
        self._has_begun = False
        self._is_well = False
        #: bytes that `send` has handed over; what the peer has not read is in between, a few MiB at most
        self.sent = 0

    @property
    def goes_on(self) -> bool:
        """Whether another request may come over this connection: this one was answered once, and well."""
        return self._is_well and self._keeps_alive and not self._connection.is_closing

    @property
    def has_begun(self) -> bool:
        """Whether anything was sent for an answer."""
        return self._has_begun

    async def reply(self, reply: Reply) -> None:
        """Answer in good HTTP. The framing is ours: headers of the reply that would change it are left out."""
        data = format_reply(reply, method=self.request.method, keeps_alive=self._keeps_alive)
        self._is_well = not self._has_begun
        self._has_begun = True
        await self._connection.write(data)

    async def send(self, data: bytes) -> None:
        """Send these bytes as they are. The connection is closed when the behaviour returns."""
        self._has_begun = True
        self._is_well = False
        await self._connection.write(data)
        self.sent += len(data)

    async def close(self) -> None:
        """Close in good order: all that was sent arrives, then a FIN."""
        await self._connection.finish()

    def reset(self) -> None:
        """Cut the connection with a RST; what has not yet left is lost."""
        self._connection.reset()

    async def until_gone(self, within: float) -> bool:
        """Wait for the peer to close its side, at most so many seconds; whether it did."""
        try:
            async with asyncio.timeout(within):
                await self._connection.until_ended()
        except TimeoutError:
            return False
        return True


#: answers one request. When it returns, the connection goes on if it was answered well, else it is closed
Behaviour = Callable[[Exchange], Awaitable[None]]


def format_reply(reply: Reply, *, method: str, keeps_alive: bool) -> bytes:
    """An answer as bytes. Without a Date, so that the same reply is always the same bytes."""
    try:
        phrase = HTTPStatus(reply.status).phrase
    except ValueError:
        phrase = ""
    lines = [f"HTTP/1.1 {reply.status} {phrase}"]
    for name, value in reply.headers:
        line = f"{name}: {value}".encode("latin-1")
        if HEADER.fullmatch(line) is None:
            raise ValueError("a header of the reply is malformed")
        if name.lower() not in {"content-length", "transfer-encoding", "connection"}:
            lines.append(f"{name}: {value}")
    has_body = reply.status >= 200 and reply.status not in {204, 304}
    if has_body:
        lines.append(f"Content-Length: {len(reply.body)}")
    lines.append(f"Connection: {'keep-alive' if keeps_alive else 'close'}")
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    return head + reply.body if has_body and method != "HEAD" else head
