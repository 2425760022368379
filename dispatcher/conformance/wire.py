"""A server for HTTP/1.1 that keeps each request byte by byte, and leaves it to its user to answer well or badly.

The peer is not trusted: what it sends is bounded in size and time, and no connection outlives the server. HTTP by
RFC 9110 and RFC 9112, read strictly: what a careful server refuses is refused here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
import ssl
import struct
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import urlsplit

from dispatcher.conformance.requests import Headers, Received, Reply
from dispatcher.errors import ConfigError

__all__ = ["Behaviour", "Counter", "Exchange", "WireServer"]

_log = logging.getLogger(__name__)

_PIECE_BYTES = 65_536
#: the line that begins a chunk: its size, and extensions that mean nothing to us
_MAX_CHUNK_LINE_BYTES = 4_096
_MAX_EMPTY_LINES = 8
#: after a refusal: so long we read on, since a close with unread bytes is a reset, which would eat the answer
_LINGER_S = 1.0
_TLS_GOODBYE_S = 1.0
#: how long `close` waits for behaviours that take their time to end
_END_S = 5.0
_ACCEPT_AT_ONCE = 100
#: out of file handles, say
_ACCEPT_AGAIN_S = 0.1

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([^\x00-\x20\x7f]+) HTTP/([0-9])\.([0-9])")
_HEADER = re.compile(rb"(" + _TOKEN + rb"):[ \t]*+([^\x00-\x08\x0a-\x1f\x7f]*)")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?")
_LENGTH = re.compile(r"[0-9]{1,18}")


class Counter:
    """Counts connections and requests; one for all servers whose numbers are to go together."""

    def __init__(self) -> None:
        self.connections = 0
        self.requests = 0

    def next_connection(self) -> int:
        """The number of another connection: 1, 2, 3 …"""
        self.connections += 1
        return self.connections

    def next_request(self) -> int:
        """The number of another request: 1, 2, 3 …"""
        self.requests += 1
        return self.requests


class Exchange:
    """One request, and the means to answer it well or badly.

    All that write raise ConnectionError when the peer has gone, or does not read for too long. A behaviour may let
    it through.
    """

    def __init__(self, request: Received, connection: _Connection, *, keeps_alive: bool) -> None:
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
        data = _format(reply, method=self.request.method, keeps_alive=self._keeps_alive)
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


class _Ended(Exception):
    """The peer sends nothing more."""


class _Refused(Exception):
    """The request is not one that we take."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class WireServer:
    """Listens on one address, with TLS if there is a context, and hands each request to `handle`.

    A head of more than `max_head` bytes is answered 431, a body of more than `max_body` 413 (frames of its chunks and
    trailers may add as much again and a head), one that takes longer than `within` seconds 408, malformed ones 400:
    then `on_refused` is told the answer and the reason, which shows nothing of the request. `on_incomplete` is given
    what came of a request whose head was good and whose body was not; `handle` never sees it.
    """

    def __init__(
        self,
        handle: Behaviour,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        max_head: int = 65_536,
        max_body: int = 1_048_576,
        within: float = 30.0,
        max_connections: int = 1_000,
        counter: Counter | None = None,
        on_refused: Callable[[Reply, str], None] | None = None,
        on_incomplete: Callable[[Received], None] | None = None,
    ) -> None:
        self._handle = handle
        self._host = host
        #: where it listens; after `start` never 0
        self.port = port
        self._tls = tls
        self._limits = _Limits(head=max_head, body=max_body, within=within)
        self._max_connections = max_connections
        self._counter = counter or Counter()
        self._on_refused = on_refused
        self._on_incomplete = on_incomplete
        self._listener: socket.socket | None = None
        self._again: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        #: handshakes that came to nothing: the peer went, did not like our certificate, or spoke no TLS
        self.failed_handshakes = 0

    @property
    def open_connections(self) -> int:
        """How many connections there are now, those amid their handshake included."""
        return len(self._tasks)

    async def start(self) -> None:
        """Listen. A name that stands for several addresses: on the first.

        Raises:
            ConfigError: there is no such address here, or its port is taken.
        """
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self._host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            self._listener = _listen(found[0][0], found[0][4])
        except OSError as exc:
            raise ConfigError(f"cannot listen on {self._host}, port {self.port}: {exc.strerror or exc}") from exc
        self.port = self._listener.getsockname()[1]
        self._resume()

    async def close(self) -> None:
        """Stop listening, and cut every connection."""
        if self._listener is not None:
            self._pause()
            self._listener.close()
            self._listener = None
        # A connection that was accepted this moment has its task and its transport begin first: only then is there
        # something that a cancellation closes.
        for _ in range(3):
            await asyncio.sleep(0)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_END_S)
        # a transport that was aborted closes its socket a round of the loop later
        for _ in range(3):
            await asyncio.sleep(0)

    # accepting: by hand, since asyncio.Server knows nothing of a connection before its handshake is done, so that it
    # can neither count nor close it

    def _pause(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)

    def _resume(self) -> None:
        self._again = None
        if self._listener is not None and len(self._tasks) < self._max_connections:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(_ACCEPT_AT_ONCE):
            if self._listener is None:
                return
            if len(self._tasks) >= self._max_connections:
                self._pause()
                return
            try:
                accepted, address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:
                self._pause()
                self._again = loop.call_later(_ACCEPT_AGAIN_S, self._resume)
                return
            accepted.setblocking(False)
            task = loop.create_task(self._serve(accepted, str(address[0])))
            self._tasks.add(task)
            task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        was_full = len(self._tasks) >= self._max_connections
        self._tasks.discard(task)
        if was_full and self._again is None:
            self._resume()

    # serving

    async def _serve(self, accepted: socket.socket, remote: str) -> None:
        number = self._counter.next_connection()
        try:
            connection = await _Connection.open(accepted, tls=self._tls, within=self._limits.within)
        except (OSError, EOFError):
            self.failed_handshakes += 1
            return
        try:
            await self._converse(connection, number, remote)
        except ConnectionError:
            pass  # the peer has gone
        except Exception as exc:  # noqa: BLE001 - whatever our user's functions do, the server goes on
            _log.error("a connection was cut: %s", type(exc).__name__)  # its text may show what the request held
        finally:
            connection.abort()

    async def _converse(self, connection: _Connection, number: int, remote: str) -> None:
        while await connection.has_more(self._limits.within):
            incoming = _Incoming(
                connection=connection,
                limits=self._limits,
                number=self._counter.next_request(),
                connection_number=number,
                remote=remote,
                is_tls=self._tls is not None,
            )
            try:
                request = await incoming.read()
            except _Refused as refused:
                await self._refuse(connection, incoming, refused)
                return
            exchange = Exchange(request, connection, keeps_alive=incoming.keeps_alive)
            await self._answer(exchange)
            if not exchange.goes_on:
                break
        await connection.finish()

    async def _answer(self, exchange: Exchange) -> None:
        try:
            await self._handle(exchange)
        except ConnectionError:
            raise
        except Exception as exc:  # noqa: BLE001 - see above
            _log.error("what handles a request failed: %s", type(exc).__name__)
            if not exchange.has_begun:
                await exchange.reply(Reply(status=500))

    async def _refuse(self, connection: _Connection, incoming: _Incoming, refused: _Refused) -> None:
        reply = Reply(
            status=refused.status, headers=(("Content-Type", "text/plain"),), body=f"{refused.reason}\n".encode()
        )
        partial = incoming.partial()
        if partial is not None and self._on_incomplete is not None:
            self._on_incomplete(partial)
        if self._on_refused is not None:
            self._on_refused(reply, refused.reason)
        await connection.write(_format(reply, method="POST", keeps_alive=False))
        await connection.linger()


def _listen(family: int, address: tuple[object, ...]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        listener.bind(address)
        listener.listen(1_000)
    except OSError:
        listener.close()
        raise
    return listener


@dataclass(frozen=True, kw_only=True, slots=True)
class _Limits:
    #: bytes
    head: int
    #: bytes
    body: int
    #: seconds: for a handshake, for the next request to begin, for a request to come in, for a write to leave
    within: float


class _Protocol(asyncio.StreamReaderProtocol):
    """A stream whose end can be awaited by several, each with a time limit."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        super().__init__(reader)
        self.is_lost = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.is_lost.set()


class _Connection:
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
    async def open(cls, accepted: socket.socket, *, tls: ssl.SSLContext | None, within: float) -> _Connection:
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
        except (TimeoutError, _Ended):
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
        with contextlib.suppress(_Ended, ConnectionError):
            while len(self._pending) < _PIECE_BYTES:
                await self._more()
            await self._is_lost.wait()

    async def _more(self) -> None:
        try:
            data = await self._reader.read(_PIECE_BYTES)
        except OSError as exc:
            raise ConnectionResetError("the connection broke") from exc
        if not data:
            raise _Ended
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


@dataclass(kw_only=True)
class _Incoming:
    """One request on its way in."""

    connection: _Connection
    limits: _Limits
    number: int
    connection_number: int
    remote: str
    is_tls: bool
    keeps_alive: bool = False
    _head: _Head | None = None
    _body: bytearray = field(default_factory=bytearray)

    async def read(self) -> Received:
        """All of it.

        Raises:
            _Refused: it is malformed, too large, too slow, or broke off.
        """
        try:
            async with asyncio.timeout(self.limits.within):
                head = self._head = await self._read_head()
                length = _framing(head)
                self.keeps_alive = _keeps_alive(head)
                await self._encourage(head, length)
                if length is None:
                    await self._read_chunks()
                else:
                    if length > self.limits.body:
                        raise _Refused(413, "the body is too large")
                    await self.connection.exactly(length, self._body)
        except TimeoutError:
            raise _Refused(408, "the request did not come in in time") from None
        except (_Ended, ConnectionError):
            raise _Refused(400, "the request broke off") from None
        return self._received(head, is_complete=True)

    def partial(self) -> Received | None:
        """What came of a request that was refused; None if its head was no good."""
        return None if self._head is None else self._received(self._head, is_complete=False)

    def _received(self, head: _Head, *, is_complete: bool) -> Received:
        return Received(
            number=self.number,
            at=head.at,
            clock=head.clock,
            connection=self.connection_number,
            remote=self.remote,
            is_tls=self.is_tls,
            method=head.method,
            target=head.target,
            headers=head.headers,
            body=bytes(self._body),
            raw=bytes(self.connection.taken),
            is_complete=is_complete,
        )

    async def _read_head(self) -> _Head:
        line = await self._head_line(self.limits.head)
        match = _REQUEST_LINE.fullmatch(line)
        if match is None:
            raise _Refused(400, "the request line is malformed")
        if match[3] != b"1":
            raise _Refused(505, "the version is not HTTP/1.1 or HTTP/1.0")
        target = match[2].decode("latin-1")
        try:
            urlsplit(target)  # so that `Received.path` raises for no request
        except ValueError:
            raise _Refused(400, "the target is malformed") from None
        headers = await self._header_lines(self.limits.head - len(self.connection.taken))
        return _Head(
            method=match[1].decode("ascii"),
            target=target,
            is_old=match[4] == b"0",
            headers=headers,
            at=time.time(),
            clock=time.monotonic(),
        )

    async def _header_lines(self, room: int) -> Headers:
        """Header lines up to the empty one, all together at most `room` bytes; of a head, or of trailers."""
        headers: list[tuple[str, str]] = []
        while line := await self._head_line(room):
            room -= len(line) + 2
            match = _HEADER.fullmatch(line)
            if match is None:
                raise _Refused(400, "a header line is malformed")
            headers.append((match[1].decode("ascii"), match[2].decode("latin-1").rstrip(" \t")))
        return tuple(headers)

    async def _head_line(self, room: int) -> bytes:
        line = await self.connection.line(room)
        if line is None:
            raise _Refused(431, "the head is too large")
        return _without_end(line)

    async def _encourage(self, head: _Head, length: int | None) -> None:
        """A peer that asks before it sends its body is told to go on, unless we would not take it."""
        expected = {value.lower() for name, value in head.headers if name.lower() == "expect"}
        if not expected or head.is_old:
            return
        if expected != {"100-continue"}:
            raise _Refused(417, "the expectation is not one we meet")
        if length != 0 and (length is None or length <= self.limits.body) and self.connection.is_waiting:
            await self.connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def _read_chunks(self) -> None:
        frames = 0
        most_frames = self.limits.head + self.limits.body
        while True:
            line = await self.connection.line(_MAX_CHUNK_LINE_BYTES)
            match = None if line is None else _CHUNK_LINE.fullmatch(_without_end(line))
            if line is None or match is None:
                raise _Refused(400, "a chunk is malformed")
            size = int(match[1], 16)
            if size == 0:
                await self._header_lines(self.limits.head)
                return
            frames += len(line) + 2
            if len(self._body) + size > self.limits.body or frames > most_frames:
                raise _Refused(413, "the body is too large")
            await self.connection.exactly(size, self._body)
            end = bytearray()
            await self.connection.exactly(2, end)
            if end != b"\r\n":
                raise _Refused(400, "a chunk is malformed")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Head:
    method: str
    target: str
    #: HTTP/1.0
    is_old: bool
    headers: Headers
    at: float
    clock: float

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name]


def _without_end(line: bytes) -> bytes:
    """A line without its CR LF. A lone LF is refused: another server might see two lines where we see one."""
    if not line.endswith(b"\r\n"):
        raise _Refused(400, "a line does not end in CR LF")
    return line[:-2]


def _framing(head: _Head) -> int | None:
    """How many bytes the body has; None: it comes in chunks. RFC 9112, 6.3, where it is in doubt refused."""
    codings, lengths = head.values("transfer-encoding"), head.values("content-length")
    if len(head.values("host")) > 1 or (not head.is_old and not head.values("host")):
        raise _Refused(400, "there is not exactly one Host header")
    if codings:
        if lengths or head.is_old:
            raise _Refused(400, "Transfer-Encoding stands beside Content-Length, or in HTTP/1.0")
        if [coding.lower() for coding in codings] != ["chunked"]:
            raise _Refused(501, "a Transfer-Encoding other than chunked")
        return None
    if len(lengths) > 1 or not all(_LENGTH.fullmatch(length) for length in lengths):
        raise _Refused(400, "the Content-Length is malformed")
    return int(lengths[0]) if lengths else 0


def _keeps_alive(head: _Head) -> bool:
    options = {option.strip().lower() for value in head.values("connection") for option in value.split(",")}
    return "close" not in options and (not head.is_old or "keep-alive" in options)


def _format(reply: Reply, *, method: str, keeps_alive: bool) -> bytes:
    """An answer as bytes. Without a Date, so that the same reply is always the same bytes."""
    try:
        phrase = HTTPStatus(reply.status).phrase
    except ValueError:
        phrase = ""
    lines = [f"HTTP/1.1 {reply.status} {phrase}"]
    for name, value in reply.headers:
        line = f"{name}: {value}".encode("latin-1")
        if _HEADER.fullmatch(line) is None:
            raise ValueError("a header of the reply is malformed")
        if name.lower() not in {"content-length", "transfer-encoding", "connection"}:
            lines.append(f"{name}: {value}")
    has_body = reply.status >= 200 and reply.status not in {204, 304}
    if has_body:
        lines.append(f"Content-Length: {len(reply.body)}")
    lines.append(f"Connection: {'keep-alive' if keeps_alive else 'close'}")
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    return head + reply.body if has_body and method != "HEAD" else head
