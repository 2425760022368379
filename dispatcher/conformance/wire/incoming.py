"""One request on its way in: HTTP/1.1 by RFC 9110 and RFC 9112, read strictly and within limits."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from dispatcher.conformance.wire.connection import Connection, Ended
from dispatcher.conformance.wire.requests import Headers, Received

#: the line that begins a chunk: its size, and extensions that mean nothing to us
_MAX_CHUNK_LINE_BYTES = 4_096

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([^\x00-\x20\x7f]+) HTTP/([0-9])\.([0-9])")
#: a name and a value, without the line's end
HEADER = re.compile(rb"(" + _TOKEN + rb"):[ \t]*+([^\x00-\x08\x0a-\x1f\x7f]*)")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?")
_LENGTH = re.compile(r"[0-9]{1,18}")


class Refused(Exception):
    """The request is not one that we take."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    #: bytes
    head: int
    #: bytes
    body: int
    #: seconds: for a handshake, for the next request to begin, for a request to come in, for a write to leave
    within: float


@dataclass(kw_only=True)
class Incoming:
    """One request on its way in."""

    connection: Connection
    limits: Limits
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
            Refused: it is malformed, too large, too slow, or broke off.
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
                        raise Refused(413, "the body is too large")
                    await self.connection.exactly(length, self._body)
        except TimeoutError:
            raise Refused(408, "the request did not come in in time") from None
        except (Ended, ConnectionError):
            raise Refused(400, "the request broke off") from None
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
            raise Refused(400, "the request line is malformed")
        if match[3] != b"1":
            raise Refused(505, "the version is not HTTP/1.1 or HTTP/1.0")
        target = match[2].decode("latin-1")
        try:
            urlsplit(target)  # so that `Received.path` raises for no request
        except ValueError:
            raise Refused(400, "the target is malformed") from None
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
            match = HEADER.fullmatch(line)
            if match is None:
                raise Refused(400, "a header line is malformed")
            headers.append((match[1].decode("ascii"), match[2].decode("latin-1").rstrip(" \t")))
        return tuple(headers)

    async def _head_line(self, room: int) -> bytes:
        line = await self.connection.line(room)
        if line is None:
            raise Refused(431, "the head is too large")
        return _without_end(line)

    async def _encourage(self, head: _Head, length: int | None) -> None:
        """A peer that asks before it sends its body is told to go on, unless we would not take it."""
        expected = {value.lower() for name, value in head.headers if name.lower() == "expect"}
        if not expected or head.is_old:
            return
        if expected != {"100-continue"}:
            raise Refused(417, "the expectation is not one we meet")
        if length != 0 and (length is None or length <= self.limits.body) and self.connection.is_waiting:
            await self.connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def _read_chunks(self) -> None:
        frames = 0
        most_frames = self.limits.head + self.limits.body
        while True:
            line = await self.connection.line(_MAX_CHUNK_LINE_BYTES)
            match = None if line is None else _CHUNK_LINE.fullmatch(_without_end(line))
            if line is None or match is None:
                raise Refused(400, "a chunk is malformed")
            size = int(match[1], 16)
            if size == 0:
                await self._header_lines(self.limits.head)
                return
            frames += len(line) + 2
            if len(self._body) + size > self.limits.body or frames > most_frames:
                raise Refused(413, "the body is too large")
            await self.connection.exactly(size, self._body)
            end = bytearray()
            await self.connection.exactly(2, end)
            if end != b"\r\n":
                raise Refused(400, "a chunk is malformed")


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
        raise Refused(400, "a line does not end in CR LF")
    return line[:-2]


def _framing(head: _Head) -> int | None:
    """How many bytes the body has; None: it comes in chunks. RFC 9112, 6.3, where it is in doubt refused."""
    codings, lengths = head.values("transfer-encoding"), head.values("content-length")
    if len(head.values("host")) > 1 or (not head.is_old and not head.values("host")):
        raise Refused(400, "there is not exactly one Host header")
    if codings:
        if lengths or head.is_old:
            raise Refused(400, "Transfer-Encoding stands beside Content-Length, or in HTTP/1.0")
        if [coding.lower() for coding in codings] != ["chunked"]:
            raise Refused(501, "a Transfer-Encoding other than chunked")
        return None
    if len(lengths) > 1 or not all(_LENGTH.fullmatch(length) for length in lengths):
        raise Refused(400, "the Content-Length is malformed")
    return int(lengths[0]) if lengths else 0


def _keeps_alive(head: _Head) -> bool:
    options = {option.strip().lower() for value in head.values("connection") for option in value.split(",")}
    return "close" not in options and (not head.is_old or "keep-alive" in options)
