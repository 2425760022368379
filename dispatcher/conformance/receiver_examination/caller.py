"""A client that sends exact bytes, well-formed or not, and reads answers within bounds and deadlines.

Libraries refuse to send what a receiver has to refuse; so this is plain asyncio, and reads no more than it needs.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from dispatcher.conformance.wire.requests import Headers

#: bytes of an answer's head and of its body that are read
MAX_HEAD = 65_536
MAX_BODY = 262_144
#: bytes that are written at once
PIECE = 65_536
#: seconds for an orderly end of a connection
_FAREWELL = 0.5

_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [^\r\n]*)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """Where to dial; nothing else is dialled."""

    host: str = field(repr=False)
    port: int
    #: None: without TLS
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What came of a request."""

    #: None: there was no answer, and `trouble` says why
    status: int | None = None
    headers: Headers = field(default=(), repr=False)
    #: the first `MAX_BODY` bytes, without the chunks' frames
    body: bytes = field(default=b"", repr=False)
    #: from the start of the dialling to the end of the answer
    seconds: float = 0.0
    #: "refused" (nobody listens), "tls", "timeout", "closed", "reset" or "malformed"
    trouble: str = ""
    #: 100 Continue came before it
    was_continued: bool = False

    @property
    def name(self) -> str:
        """The status, or what went wrong."""
        return str(self.status) if self.status is not None else self.trouble

    @property
    def is_success(self) -> bool:
        """2xx."""
        return self.status is not None and 200 <= self.status <= 299

    @property
    def is_refusal(self) -> bool:
        """4xx."""
        return self.status is not None and 400 <= self.status <= 499

    def header(self, name: str) -> str | None:
        """The first value of a header; None if there is none."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def in_words(self) -> str:
        """To be put behind what was sent: "was answered 200"."""
        return {
            "refused": "could not be sent: nobody listens there",
            "tls": "could not be sent: the TLS handshake failed, or the certificate is not trusted",
            "timeout": "was not answered in time",
            "closed": "was not answered: the connection was closed",
            "reset": "was not answered: the connection was reset",
            "malformed": "was answered by what is not HTTP/1.1",
        }.get(self.trouble, f"was answered {self.status}")


class MalformedAnswer(Exception):
    """What came is not HTTP/1.1, or beyond its bounds."""


class Connection:
    """One connection. An async context manager; `dial` makes it."""

    def __init__(self, transport: asyncio.Transport, peer: _Peer) -> None:
        self._transport = transport
        self._peer = peer

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._transport.close()
        try:
            async with asyncio.timeout(_FAREWELL):
                await self._peer.lost.wait()
        except TimeoutError:
            self._transport.abort()
            await self._peer.lost.wait()

    async def send(self, data: bytes | Iterable[bytes]) -> None:
        """Send bytes, as far as the peer takes them."""
        for piece in _pieces(data):
            # lets an answer in that came early: a failing write would lose it
            await asyncio.sleep(0)
            if self._peer.ending or self._transport.is_closing():
                return
            self._transport.write(piece)
            await self._peer.may_write.wait()

    async def exchange(self, data: bytes | Iterable[bytes]) -> Answer:
        """Send a request and read its answer, which may come before all was sent. The caller sets the deadline."""
        sending = asyncio.create_task(self.send(data))
        try:
            return await self.answer()
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def answer(self) -> Answer:
        """Read the next final answer."""
        started = time.monotonic()
        was_continued = False
        while True:
            try:
                parsed = parse(bytes(self._peer.buffer), is_ended=bool(self._peer.ending))
            except MalformedAnswer:
                return Answer(trouble="malformed", seconds=time.monotonic() - started)
            if parsed is None:
                if self._peer.ending:
                    return Answer(trouble=self._peer.ending, seconds=time.monotonic() - started)
                await self._peer.wait()
                continue
            status, headers, body, length = parsed
            del self._peer.buffer[:length]
            if status >= 200:
                return Answer(
                    status=status,
                    headers=headers,
                    body=body,
                    seconds=time.monotonic() - started,
                    was_continued=was_continued,
                )
            was_continued = was_continued or status == 100

    async def is_continued(self) -> bool:
        """Wait for anything; whether it is 100 Continue. It stays to be read."""
        while not self._peer.ending and b"\r\n\r\n" not in self._peer.buffer:
            await self._peer.wait()
        return self._peer.buffer.startswith((b"HTTP/1.1 100", b"HTTP/1.0 100"))

    async def ended(self) -> bytes:
        """Wait until the peer ends the connection; what came before that, up to the bounds."""
        while not self._peer.ending:
            await self._peer.wait()
        return bytes(self._peer.buffer)

    def end_sending(self) -> None:
        """Tell the peer that no more comes (FIN). Over TLS, which cannot, the connection is closed."""
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()


async def dial(address: Address) -> Connection | Answer:
    """Open a connection; or the answer that tells why there is none. The caller sets the deadline."""
    loop = asyncio.get_running_loop()
    try:
        transport, peer = await loop.create_connection(_Peer, address.host, address.port, ssl=address.tls)
    except ssl.SSLError:
        return Answer(trouble="tls")
    except (ConnectionResetError, BrokenPipeError):
        return Answer(trouble="reset")
    except (OSError, UnicodeError):
        return Answer(trouble="refused")
    return Connection(transport, peer)


def parse(data: bytes, *, is_ended: bool) -> tuple[int, Headers, bytes, int] | None:
    """Status, headers, body and length of the answer at the start of these bytes; None if more has to come.

    A body that is cut off counts as far as it came. Raises MalformedAnswer.
    """
    head, found, rest = data.partition(b"\r\n\r\n")
    if len(head) > MAX_HEAD:
        raise MalformedAnswer
    if not found:
        return None
    lines = head.split(b"\r\n")
    matched = _STATUS.fullmatch(lines[0])
    if matched is None:
        raise MalformedAnswer
    status = int(matched[1])
    headers = tuple(_header(line) for line in lines[1:])
    framed = _body(status, headers, rest, is_ended=is_ended)
    if framed is None:
        return None
    body, length = framed
    return status, headers, body, len(head) + 4 + length


def _body(status: int, headers: Headers, rest: bytes, *, is_ended: bool) -> tuple[bytes, int] | None:
    """The body and how many bytes it takes (RFC 9112, section 6.3)."""
    if status < 200 or status in {204, 304}:
        return b"", 0
    fields = {name.lower(): value for name, value in headers}
    is_over = is_ended or len(rest) >= MAX_BODY
    if "chunked" in fields.get("transfer-encoding", "").lower():
        return _unchunked(rest, is_over=is_over)
    if "content-length" not in fields:
        return (rest[:MAX_BODY], len(rest)) if is_over else None
    length = fields["content-length"]
    if not (length.isascii() and length.isdigit() and len(length) < 16):
        raise MalformedAnswer
    if len(rest) >= int(length):
        return rest[: min(int(length), MAX_BODY)], int(length)
    return (rest[:MAX_BODY], len(rest)) if is_over else None


def _unchunked(rest: bytes, *, is_over: bool) -> tuple[bytes, int] | None:
    body = bytearray()
    at = 0
    while True:
        end = rest.find(b"\r\n", at)
        if end < 0:
            break
        try:
            size = int(rest[at:end].partition(b";")[0], 16)
        except ValueError:
            raise MalformedAnswer from None
        if size < 0:
            raise MalformedAnswer
        if size == 0:
            last = rest.find(b"\r\n", end + 2)
            if last < 0:
                break
            return bytes(body[:MAX_BODY]), last + 2
        body += rest[end + 2 : end + 2 + size]
        at = end + 2 + size + 2
    return (bytes(body[:MAX_BODY]), len(rest)) if is_over else None


def _header(line: bytes) -> tuple[str, str]:
    name, found, value = line.decode("latin-1").partition(":")
    if not found:
        raise MalformedAnswer
    return name, value.strip(" \t")


def _pieces(data: bytes | Iterable[bytes]) -> Iterable[bytes]:
    if not isinstance(data, bytes):
        return data
    return (data[at : at + PIECE] for at in range(0, len(data), PIECE))


class _Peer(asyncio.Protocol):
    """Keeps what comes. Unlike a StreamReader it still has it after the connection broke."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        #: why no more will come; empty while more may
        self.ending = ""
        self.may_write = asyncio.Event()
        self.may_write.set()
        self.lost = asyncio.Event()
        self._changed = asyncio.Event()
        self._transport: asyncio.BaseTransport | None = None

    async def wait(self) -> None:
        """Until more came, or no more will."""
        self._changed.clear()
        await self._changed.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if len(self.buffer) > MAX_HEAD + 2 * MAX_BODY and isinstance(self._transport, asyncio.Transport):
            self.ending = self.ending or "malformed"
            self._transport.abort()
        self._changed.set()

    def eof_received(self) -> None:
        self.ending = self.ending or "closed"
        self._changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ending = self.ending or ("closed" if exc is None else "reset")
        self.may_write.set()
        self.lost.set()
        self._changed.set()

    def pause_writing(self) -> None:
        self.may_write.clear()

    def resume_writing(self) -> None:
        self.may_write.set()
