"""One connection to an endpoint: it carries one request at a time, and reads the answer as it comes."""

from __future__ import annotations

import asyncio
import select
import ssl
import time
from collections.abc import Callable, Hashable

from dispatcher.delivery.answer import AnswerReader
from dispatcher.delivery.deadlines import Deadlines
from dispatcher.delivery.dialing import elapsed_ms, explain_tls
from dispatcher.delivery.tls import ClientContext
from dispatcher.delivery.transport import MAX_AGE_S, Exchange, Response, Timing
from dispatcher.errors import SendError
from dispatcher.models import Outcome


class Connection(asyncio.Protocol):
    """TCP or TLS. Closing it is instant and needs no await, so a cancelled request cannot leave it open."""

    def __init__(self, deadlines: Deadlines, on_over: Callable[[Connection], None]) -> None:
        """`on_over` is called when the request that is under way has come to its end."""
        self._loop = asyncio.get_running_loop()
        self._deadlines = deadlines
        self._on_over = on_over
        #: what is under way, until it is finished
        self.exchange: Exchange | None = None
        self._is_over = False
        self._is_first = True
        self._transport: asyncio.Transport | None = None
        self._poll = select.poll()
        self._error: Exception | None = None
        #: the answer that is waited for, or the last one
        self._answer: AnswerReader | None = None
        #: when the request began, on the clock of `time.perf_counter`, and what takes its deadline back
        self._began = 0.0
        self._tick = 0
        self._is_late = False
        self._is_lost = False
        #: what a request must have in common with the one before to use it
        self.key: Hashable = None
        #: when it became idle, on the event loop's clock
        self.idle_since = 0.0
        self._opened_at = self._loop.time()
        #: where it leads and by whom sessions are kept, if it speaks TLS
        self._tls: tuple[ClientContext, str] | None = None
        #: to ask for its session costs more than a request
        self._has_kept_session = False

    # what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self._transport = transport  # type: ignore[assignment]  # a stream protocol gets a Transport
        sock = transport.get_extra_info("socket")
        if self._tls is None and sock is not None:
            self._poll.register(sock.fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        """Bytes of an answer, or some that nobody asked for."""
        answer = self._answer
        if answer is None or self.exchange is None:
            self.close()
            return
        answer.feed(data)
        if answer.is_over:
            self._tell()

    def eof_received(self) -> None:
        """The peer sends nothing more."""
        self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed."""
        self._error = self._error or exc
        self._end()

    def expire(self) -> None:
        """The deadline of the request has come."""
        if self._is_over:
            return
        self._is_late = True
        if self._answer is not None:
            self._answer.cut()
        self._tell()

    # what we call

    async def start_tls(self, context: ClientContext, host: str, timing: Timing) -> None:
        """Turn this connection into a TLS one, by the host's name. Raises SendError: `tls_error`."""
        started = time.perf_counter()
        self._tls = context, host
        transport: asyncio.Transport | None = None
        try:
            if self._transport is None or self._is_lost:
                raise ConnectionResetError
            transport = await self._loop.start_tls(self._transport, self, context, server_hostname=host)
        except OSError as exc:  # ssl.SSLError is one
            # It may have been the session that the peer did not like.
            context.forget(host)
            self.close()
            raise SendError(Outcome.TLS_ERROR, explain_tls(exc)) from exc
        finally:
            timing.tls = elapsed_ms(started)
        if transport is None:
            # uvloop returns no transport when the connection broke during the handshake
            self.close()
            raise SendError(Outcome.TLS_ERROR, "the TLS handshake broke off")
        self._transport = transport

    def begin(self, exchange: Exchange) -> None:
        """Send a request, and call `on_over` when there is an answer, or will be none."""
        request = exchange.request
        # Answers to HEAD have no body, whatever their headers say.
        has_body = request.method != "HEAD"
        last = self._answer
        self._answer = AnswerReader(has_body=has_body) if last is None else last.following(has_body=has_body)
        self._is_first = last is None
        self.exchange = exchange
        self._tick = self._deadlines.add(self, exchange.until)
        self._began = time.perf_counter()
        # There is no waiting for it to leave: the bytes were in memory before. So an answer that comes before the end
        # of a large body is read, and a lost connection is noticed by that read.
        if self._transport is None or self._is_lost or self._transport.is_closing():
            self._end()
        else:
            self._transport.write(exchange.head + request.body)

    def finish(self) -> Response:
        """The answer to the request.

        Raises:
            SendError: there is no usable answer.
            BrokenBeforeAnswer: the connection had been used before, it broke, and no byte of an answer had come.
        """
        answer, exchange = self._answer, self.exchange
        if answer is None or exchange is None:
            raise AssertionError("no request is under way")
        self.exchange, self._is_over = None, False
        self._deadlines.discard(self, self._tick)
        exchange.timing.wait = ((answer.head_at or time.perf_counter()) - self._began) * 1000.0
        if answer.status:
            return answer.response()
        self.close()
        raise self._failure(answer)

    def abandon(self) -> None:
        """Close at once; nobody waits for the answer any more."""
        self._deadlines.discard(self, self._tick)
        self.exchange = None
        self.close()

    @property
    def is_at_start(self) -> bool:
        """Whether it is open, not too old, and at the start of its next request, as far as the event loop has seen."""
        answer, transport = self._answer, self._transport
        if answer is None or not answer.keeps_alive or answer.has_leftover:
            return False
        if self._is_lost or transport is None or transport.is_closing() or transport.get_write_buffer_size():
            return False
        return self._loop.time() <= self._opened_at + MAX_AGE_S

    @property
    def reusable(self) -> bool:
        """Whether the next request may go over it now."""
        # The kernel may have what the event loop has not seen yet: the end, or bytes that nobody asked for.
        return self.is_at_start and not self._poll.poll(0)

    def close(self) -> None:
        """Close at once. A request in flight fails."""
        self._end()
        if self._transport is not None:
            self._transport.abort()

    def forget_answer(self) -> None:
        """Hold nothing of the last answer: it may be long until the next one."""
        if self._answer is not None:
            self._answer.release()

    def keep_session(self) -> None:
        """Let the next connection to this host begin with what this one agreed on, as far as that is known by now."""
        if self._tls is not None and self._transport is not None and not self._has_kept_session:
            self._has_kept_session = True
            context, host = self._tls
            context.keep(host, self._transport.get_extra_info("ssl_object"))

    def _end(self) -> None:
        self._is_lost = True
        if self._answer is not None:
            self._answer.end()
        self._tell()

    def _tell(self) -> None:
        if self.exchange is not None and not self._is_over:
            self._is_over = True
            self._on_over(self)

    def _failure(self, answer: AnswerReader) -> SendError:
        if self._is_late:
            return SendError(Outcome.TIMEOUT, "no complete answer within the deadline")
        if answer.fault is not None:
            return SendError(Outcome.PROTOCOL_ERROR, answer.fault.detail)
        if isinstance(self._error, ssl.SSLError):
            # TLS 1.3 tells a client only after the handshake that its certificate was missing
            return SendError(Outcome.TLS_ERROR, explain_tls(self._error))
        if answer.has_begun or self._is_first:
            return SendError(Outcome.CONNECTION_ERROR, "the connection broke before an answer")
        return BrokenBeforeAnswer()


class BrokenBeforeAnswer(SendError):
    """A connection that had been used before broke, and no byte of an answer had come."""

    def __init__(self) -> None:
        super().__init__(Outcome.CONNECTION_ERROR, "the connection broke before an answer")
