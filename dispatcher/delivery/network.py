"""Connections for httpcore: resolve once, vet every answer, dial what was vetted.

httpcore asks this backend for a connection by name, and does TLS, SNI and Host by that name; which address
the name stands for is decided here, so nothing can change between the check and the dial.

There are no timeouts here: one deadline around the whole attempt cancels whatever is waiting.
"""

# ruff: noqa: ARG002, ASYNC109 - httpcore's interface names arguments that we have no use for, `timeout` among them

from __future__ import annotations

import asyncio
import select
import ssl
import time
from collections.abc import Iterable
from typing import Any

import httpcore

from dispatcher.delivery.dialing import addresses_of, dial, elapsed_ms, explain_tls, vetted
from dispatcher.delivery.resolver import Resolver
from dispatcher.delivery.transport import MAX_ANSWER_BYTES, Timing
from dispatcher.egress import EgressPolicy, Target
from dispatcher.errors import SendError
from dispatcher.models import Outcome

#: reading pauses above this many buffered bytes
_BUFFER_BYTES = 64 * 1024


#: bytes given to the parser at a time; between two of them other work has its turn
_READ_BYTES = 8 * 1024


class Stream(asyncio.Protocol, httpcore.AsyncNetworkStream):
    """One TCP or TLS connection.

    Closing it is instant and needs no await, so a cancelled attempt cannot leave it open.
    """

    def __init__(self, timing: Timing) -> None:
        self._loop = asyncio.get_running_loop()
        self._timing = timing
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._reading_paused = False
        self._reader: asyncio.Future[None] | None = None
        self._outgoing: list[bytes] = []
        self._lost = False
        self._error: Exception | None = None
        #: the peer, or the network, ended the connection
        self.ended = False
        #: when it was opened, on the event loop's clock
        self.opened_at = self._loop.time()
        #: bytes of this attempt's answer that were taken, framing and interim answers included
        self.taken = 0
        #: when the first byte of this attempt was sent, on the clock of `time.perf_counter`
        self.sent_at: float | None = None

    # what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream protocol gets a Transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) > _BUFFER_BYTES and self._transport is not None and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()
        _wake(self._reader)

    def eof_received(self) -> None:
        self.ended = True
        _wake(self._reader)

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = self._lost = True
        self._error = self._error or exc
        _wake(self._reader)

    # what httpcore calls

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Send what was written, and wait for the next bytes; b"" is the end.

        Bytes that came before a reset are read before it is raised.
        """
        self._flush()
        if self._buffer:
            # A peer that keeps the buffer full must not keep the event loop.
            await asyncio.sleep(0)
        while not self._buffer:
            if isinstance(self._error, ssl.SSLError):
                # TLS 1.3 tells a client only after the handshake that its certificate was missing
                raise SendError(Outcome.TLS_ERROR, explain_tls(self._error)) from self._error
            if self._error is not None:
                raise httpcore.ReadError from self._error
            if self.ended:
                return b""
            self._reader = self._loop.create_future()
            await self._reader
        size = min(max_bytes, _READ_BYTES)
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        self.taken += len(data)
        if self.taken > MAX_ANSWER_BYTES:
            self.abort()
            raise SendError(Outcome.PROTOCOL_ERROR, "the answer is too large")
        if self._reading_paused and self._transport is not None and not self._transport.is_closing():
            self._reading_paused = False
            self._transport.resume_reading()
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Keep it for the next read, so that headers and body leave in one piece.

        There is no waiting for it to leave: the bytes were in memory before. So an answer that comes before
        the end of a large body is read, and a lost connection is noticed by that read.
        """
        self._outgoing.append(buffer)

    def _flush(self) -> None:
        if self._outgoing and self._transport is not None and not self._transport.is_closing():
            if self.sent_at is None:
                self.sent_at = time.perf_counter()
            self._transport.write(b"".join(self._outgoing))
        self._outgoing.clear()

    async def aclose(self) -> None:
        self.abort()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Turn this connection into a TLS one, by the host's name.

        Raises:
            SendError: `tls_error`, when the handshake failed or the certificate is no good.
        """
        started = time.perf_counter()
        try:
            if self._transport is None or self._lost:
                raise ConnectionResetError
            self._transport = await self._loop.start_tls(
                self._transport, self, ssl_context, server_hostname=server_hostname
            )
        except OSError as exc:  # ssl.SSLError is one
            self.abort()
            raise SendError(Outcome.TLS_ERROR, explain_tls(exc)) from exc
        finally:
            self._timing.tls = elapsed_ms(started) + (self._timing.tls or 0.0)
            self.sent_at = None
        if self._transport is None:
            # uvloop returns no transport when the connection broke during the handshake
            raise SendError(Outcome.TLS_ERROR, "the TLS handshake broke off")
        return self

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            return self.stale
        return None if self._transport is None else self._transport.get_extra_info(info)

    # what we call

    @property
    def stale(self) -> bool:
        """Whether an idle connection is no good any more: ended, or with bytes nobody asked for."""
        if self.ended or self._buffer or self._transport is None or self._transport.is_closing():
            return True
        sock = self._transport.get_extra_info("socket")
        if sock is None or sock.fileno() < 0 or self._transport.get_write_buffer_size():
            return True
        # what the kernel has and the event loop has not seen yet
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def abort(self) -> None:
        """Close at once. Whoever still reads gets an error."""
        self._lost = True
        self._error = self._error or ConnectionAbortedError()
        self._buffer.clear()
        self._outgoing.clear()
        if self._transport is not None:
            self._transport.abort()
        _wake(self._reader)


class Dialer(httpcore.AsyncNetworkBackend):
    """Opens the connections of one httpcore pool of one connection.

    Without a policy nothing is vetted: it then dials the egress proxy, which is the guard.
    """

    def __init__(self, resolver: Resolver, target: Target, policy: EgressPolicy | None) -> None:
        self._resolver = resolver
        self._target = target
        self._policy = policy
        self._timing = Timing()
        self._deadline = 0.0
        #: the connection that was dialled last
        self.stream: Stream | None = None

    def begin(self, timing: Timing, deadline: float) -> None:
        """A new attempt begins; `deadline` is on the event loop's clock."""
        self._timing = timing
        self._deadline = deadline
        if self.stream is not None:
            self.stream.sent_at = None
            self.stream.taken = 0

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Resolve, vet, dial.

        Raises:
            SendError: `dns_error`, `egress_refused` or `connection_error`.
        """
        addresses = await addresses_of(host, self._resolver, self._timing)
        if self._policy is not None:
            addresses = vetted(addresses, self._target, self._policy)
        _, self.stream = await dial(addresses, port, lambda: Stream(self._timing), self._timing, until=self._deadline)
        return self.stream


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
