"""A TCP proxy on loopback that can break: it stands between the dispatchers and one server of PostgreSQL."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import cast


class Proxy:
    """Passes bytes on. While it swallows, they stay where they are, both ways; a reset ends every connection."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.port = 0
        self.swallowing = False
        self.refusing = False
        #: connections while it refused, or swallowed
        self.turned_away = 0
        self._links: set[_Side] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Side(self, None), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    @property
    def connections(self) -> int:
        """How many there are."""
        return sum(side.is_client for side in self._links)

    def reset(self) -> int:
        """Break every connection; how many there were."""
        broken = self.connections
        for side in list(self._links):
            side.reset()
        return broken

    def swallow(self) -> int:
        """Let nothing through from now on; how many connections that concerns."""
        self.swallowing = True
        for side in self._links:
            side.hold()
        return self.connections

    def release(self) -> None:
        """Let everything through again, what was held first."""
        self.swallowing = False
        for side in self._links:
            side.release()

    async def dial(self, side: _Side) -> None:
        """Connect the other side of a new connection."""
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: _Side(self, side), "127.0.0.1", self._target)
        except OSError:
            side.reset()

    def join(self, side: _Side) -> None:
        """Take in a new side of a connection."""
        self._links.add(side)

    def leave(self, side: _Side) -> None:
        """Forget it."""
        self._links.discard(side)

    async def close(self) -> None:
        """Stop."""
        if self._server is not None:
            self._server.close()
        self.reset()


class _Side(asyncio.Protocol):
    """One side of a connection: the client's, or the server's."""

    def __init__(self, proxy: Proxy, client: _Side | None) -> None:
        self._proxy = proxy
        self._other = client
        self.is_client = client is None
        self._transport: asyncio.Transport | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._waiting: list[bytes] = []
        self._over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self.is_client and self._proxy.refusing:
            self._proxy.turned_away += 1
            self.reset()
            return
        self._proxy.join(self)
        if self._proxy.swallowing:
            self._proxy.turned_away += self.is_client
            self.hold()
        if self._other is None:
            self._dialling = asyncio.create_task(self._proxy.dial(self))
        else:
            self._other.meet(self)

    def meet(self, other: _Side) -> None:
        """The other side is there."""
        self._other = other
        if self._over:
            other.end()
            return
        for data in self._waiting:
            other.send(data)
        self._waiting.clear()

    def data_received(self, data: bytes) -> None:
        if self._other is None:
            self._waiting.append(data)
        else:
            self._other.send(data)

    def send(self, data: bytes) -> None:
        """Write what the other side has read."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def hold(self) -> None:
        """Read nothing."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def release(self) -> None:
        """Read again."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def end(self) -> None:
        """Close it in good order."""
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        """Break it off: the other end gets a reset."""
        if self._transport is not None:
            sock: socket.socket | None = self._transport.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._over = True
        self._proxy.leave(self)
        if self._other is not None:
            self._other.end()
