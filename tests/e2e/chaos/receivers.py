"""Receivers of the chaos suite: they note each request as it comes, and fail in every way when told to.

They share no code with the dispatcher: what they saw is what went over the wire.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import cast

#: seconds that an answer takes at most, and how many take longer, so that something is in flight whenever it happens
QUICK = 0.05
SLOW = 0.7
SLOW_SHARE = 0.15


class Mood(StrEnum):
    """How a receiver behaves."""

    WELL = "well"
    #: nobody listens
    DOWN = "down"
    #: it takes requests and says nothing
    HANGING = "hanging"
    #: it breaks the connection over each request
    RESETTING = "resetting"
    FAILING = "500"
    #: 429, with a Retry-After of a second
    BUSY = "429"


@dataclass(slots=True, kw_only=True)
class Arrival:
    """One request as it came, and what was answered."""

    #: monotonic time
    at: float
    #: the port that it came from
    peer: int
    path: str
    wire_id: str
    attempt: int
    #: what its X-Webhook-Timestamp is ahead of our clock, seconds
    ahead: float
    body: bytes
    #: when it was answered 2xx, monotonic; None if it never was
    taken_at: float | None = None


class Receiver:
    """One endpoint on 127.0.0.1, always on the same port."""

    def __init__(self, arrivals: list[Arrival], dice: random.Random) -> None:
        self._arrivals = arrivals
        self._dice = dice
        self.mood = Mood.WELL
        self.port = 0
        #: requests that met it in another mood than well
        self.let_down = 0
        #: requests that it has answered 2xx, and when it did so last, monotonic
        self.taken = 0
        self.last_taken = 0.0
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", self.port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Listen no more, and break every connection."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self._connections):
            connection.reset()

    async def change(self, mood: Mood) -> None:
        """Behave like this from now on."""
        if self.mood is Mood.DOWN and mood is not Mood.DOWN:
            await self.start()
        if self.mood is Mood.HANGING:
            # What hangs stays without an answer.
            for connection in list(self._connections):
                connection.reset()
        self.mood = mood
        if mood is Mood.DOWN:
            await self.stop()

    def join(self, connection: _Connection) -> None:
        """Take in a new connection."""
        self._connections.add(connection)

    def leave(self, connection: _Connection) -> None:
        """Forget it."""
        self._connections.discard(connection)

    def take(self, arrival: Arrival, connection: _Connection) -> None:
        """Note a request, and answer it, or not."""
        self._arrivals.append(arrival)
        if self.mood is Mood.WELL:
            delay = self._dice.random() * (SLOW if self._dice.random() < SLOW_SHARE else QUICK)
            asyncio.get_running_loop().call_later(delay, self._answer, arrival, connection)
            return
        self.let_down += 1
        match self.mood:
            case Mood.FAILING:
                connection.answer(b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n")
            case Mood.BUSY:
                connection.answer(b"HTTP/1.1 429 X\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
            case Mood.RESETTING | Mood.DOWN:
                connection.reset()
            case _:
                pass

    def _answer(self, arrival: Arrival, connection: _Connection) -> None:
        if connection.answer(b"HTTP/1.1 200 X\r\nContent-Length: 2\r\n\r\nok"):
            arrival.taken_at = self.last_taken = time.monotonic()
            self.taken += 1


class _Connection(asyncio.Protocol):
    """One connection: requests follow each other on it."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._transport: asyncio.Transport | None = None
        self._peer = 0
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._peer = transport.get_extra_info("peername")[1]
        self._receiver.join(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._receiver.leave(self)

    def data_received(self, data: bytes) -> None:
        self._data += data
        while b"\r\n\r\n" in self._data:
            head, _, rest = self._data.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            length = int(headers["content-length"])
            if len(rest) < length:
                return
            self._data = rest[length:]
            arrival = Arrival(
                at=time.monotonic(),
                peer=self._peer,
                path=first.split(" ")[1],
                wire_id=headers["x-webhook-delivery"],
                attempt=int(headers["x-webhook-attempt"]),
                ahead=int(headers["x-webhook-timestamp"]) - time.time(),
                body=rest[:length],
            )
            self._receiver.take(arrival, self)

    def answer(self, data: bytes) -> bool:
        """Write an answer. False where nobody is there any more."""
        if self._transport is None or self._transport.is_closing():
            return False
        self._transport.write(data)
        return True

    def reset(self) -> None:
        """Break it off: the other end gets a reset."""
        if self._transport is None:
            return
        sock: socket.socket | None = self._transport.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()
