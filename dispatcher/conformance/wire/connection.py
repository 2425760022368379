"""The bytes of one connection, both ways."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct

_PIECE_BYTES = 65_536
_MAX_EMPTY_LINES = 8
#: after a refusal: so long we read on, since a close with unread bytes is a reset, which would eat the answer
_LINGER_S = 1.0
_TLS_GOODBYE_S = 1.0


class Ended(Exception):
    """The peer sends nothing more."""


class _Protocol(asyncio.StreamReaderProtocol):
    """A stream whose end can be awaited by several, each with a time limit."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        super().__init__(reader)
        self.is_lost = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.is_lost.set()


class Connection:
    """The bytes of one connection, both ways."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_lost: asyncio.Event, *, within: float
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._is_lost = is_lost
        self._within = within
        #: has come, and was not yet taken
        self._pending = bytearray()
        #: what was taken since `start_request`
        self.taken = bytearray()

    @classmethod
    async def open(cls, accepted: socket.socket, *, tls: ssl.SSLContext | None, within: float) -> Connection:
        """Shake hands. The socket is closed if that fails."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=_PIECE_BYTES, loop=loop)
        protocol = _Protocol(reader)
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol,
                accepted,
                ssl=tls,
                ssl_handshake_timeout=within if tls else None,
                ssl_shutdown_timeout=_TLS_GOODBYE_S if tls else None,
            )
        except BaseException:
            # The transport closes the socket; one whose handshake had not even begun finds it ended.
            with contextlib.suppress(OSError):
                accepted.shutdown(socket.SHUT_RDWR)
            raise
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        return cls(reader, writer, protocol.is_lost, within=within)

    @property
    def is_closing(self) -> bool:
        return self._writer.is_closing()

    # reading

    async def has_more(self, within: float) -> bool:
        """Wait for the first byte of another request."""
        passed = 0
        try:
            async with asyncio.timeout(within):
                while True:
                    # RFC 9112, 2.2: empty lines before a request are passed over; a flood of them is malformed
                    while passed < _MAX_EMPTY_LINES and self._pending.startswith(b"\r\n"):
                        del self._pending[:2]
                        passed += 1
                    if self._pending and self._pending != b"\r":
                        break
                    await self._more()
        except (TimeoutError, Ended):
            return False
        self.taken = bytearray()
        return True

    @property
    def is_waiting(self) -> bool:
        """Whether nothing has come beyond what was taken."""
        return not self._pending

    async def line(self, limit: int) -> bytes | None:
        """The next line, its end included; None if it is longer than `limit` bytes."""
        seen = 0
        while (end := self._pending.find(b"\n", seen, limit)) < 0:
            seen = len(self._pending)
            if seen >= limit:
                return None
            await self._more()
        return self._take(end + 1)

    async def exactly(self, count: int, into: bytearray) -> None:
        """The next bytes; what came of them is in `into` even if they end too soon."""
        while count:
            if not self._pending:
                await self._more()
            piece = self._take(min(count, len(self._pending)))
            into += piece
            count -= len(piece)

    async def until_ended(self) -> None:
        """Wait until the peer sends nothing more; what it does send is kept for the next request, within bounds."""
        with contextlib.suppress(Ended, ConnectionError):
            while len(self._pending) < _PIECE_BYTES:
                await self._more()
            await self._is_lost.wait()

    async def _more(self) -> None:
        try:
            data = await self._reader.read(_PIECE_BYTES)
        except OSError as exc:
            raise ConnectionResetError("the connection broke") from exc
        if not data:
            raise Ended
        self._pending += data

    def _take(self, count: int) -> bytes:
        data = bytes(self._pending[:count])
        del self._pending[:count]
        self.taken += data
        return data

    # writing

    async def write(self, data: bytes) -> None:
        """Send all of it. Raises ConnectionError if it does not leave in time."""
        if self._writer.is_closing():
            raise ConnectionResetError("the connection is closed")
        self._writer.write(data)
        try:
            async with asyncio.timeout(self._within):
                await self._writer.drain()
        except TimeoutError as exc:
            self.abort()
            raise ConnectionAbortedError("the peer does not read") from exc
        except OSError as exc:
            raise ConnectionResetError("the connection broke") from exc

    async def finish(self) -> None:
        """Close in good order, at most in the time that a write may take."""
        self._writer.close()
        try:
            async with asyncio.timeout(self._within):
                await self._is_lost.wait()
        except TimeoutError:
            self.abort()

    async def linger(self) -> None:
        """Close after a last answer to a peer that may still be sending, so that the answer reaches it."""
        if self._writer.can_write_eof():
            self._writer.write_eof()
        with contextlib.suppress(OSError):
            async with asyncio.timeout(_LINGER_S):
                while await self._reader.read(_PIECE_BYTES):
                    pass
        await self.finish()

    def reset(self) -> None:
        """Cut it with a RST."""
        raw = self._writer.get_extra_info("socket")
        if raw is not None:
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.abort()

    def abort(self) -> None:
        """Cut it."""
        self._writer.transport.abort()
