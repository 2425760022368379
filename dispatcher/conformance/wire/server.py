"""A server for HTTP/1.1 that keeps each request byte by byte, and leaves it to its user to answer well or badly.

The peer is not trusted: what it sends is bounded in size and time, and no connection outlives the server. HTTP by
RFC 9110 and RFC 9112, read strictly: what a careful server refuses is refused here.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable

from dispatcher.conformance.wire.connection import Connection
from dispatcher.conformance.wire.exchange import Behaviour, Exchange, format_reply
from dispatcher.conformance.wire.incoming import Incoming, Limits, Refused
from dispatcher.conformance.wire.requests import Received, Reply
from dispatcher.errors import ConfigError

_log = logging.getLogger(__name__)

#: how long `close` waits for behaviours that take their time to end
_END_S = 5.0
_ACCEPT_AT_ONCE = 100
#: out of file handles, say
_ACCEPT_AGAIN_S = 0.1


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
        self._limits = Limits(head=max_head, body=max_body, within=within)
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
            connection = await Connection.open(accepted, tls=self._tls, within=self._limits.within)
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

    async def _converse(self, connection: Connection, number: int, remote: str) -> None:
        while await connection.has_more(self._limits.within):
            incoming = Incoming(
                connection=connection,
                limits=self._limits,
                number=self._counter.next_request(),
                connection_number=number,
                remote=remote,
                is_tls=self._tls is not None,
            )
            try:
                request = await incoming.read()
            except Refused as refused:
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

    async def _refuse(self, connection: Connection, incoming: Incoming, refused: Refused) -> None:
        reply = Reply(
            status=refused.status, headers=(("Content-Type", "text/plain"),), body=f"{refused.reason}\n".encode()
        )
        partial = incoming.partial()
        if partial is not None and self._on_incomplete is not None:
            self._on_incomplete(partial)
        if self._on_refused is not None:
            self._on_refused(reply, refused.reason)
        await connection.write(format_reply(reply, method="POST", keeps_alive=False))
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
