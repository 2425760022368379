"""What a sender meets that runs as in production: names that lead here and there, and an exception to its rules.

All of it is on loopback, where such a sender must not send to. But one network of a few addresses is admitted, as an
operator would do it who has a receiver next door; so it can be seen that names are asked for and messages are sent, and
that nothing goes to the addresses beside it.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from types import TracebackType
from typing import Self

from dispatcher.conformance.certificates import Authority
from dispatcher.conformance.wire.exchange import Exchange
from dispatcher.conformance.wire.name_server import NameServer
from dispatcher.conformance.wire.requests import Reply
from dispatcher.conformance.wire.server import Counter, WireServer
from dispatcher.errors import ConfigError

#: what an operator admits: the first of its two addresses is where nobody listens
ADMITTED_NETWORK = "127.0.0.76/31"
DEAF, ADMITTED = "127.0.0.76", "127.0.0.77"
#: what nobody admits: one address for each kind of name that leads there, so that a connection tells which it was
LOOPBACK, REBOUND, MIXED = "127.0.0.78", "127.0.0.79", "127.0.0.80"
#: where the sender itself is
OWN = ("127.0.0.1", "::1")

#: tries to find ports that are free on all addresses
_TRIES = 20

#: takes a request to one of the addresses
Behaviour = Callable[[str, Exchange], Awaitable[None]]


class Neighbourhood:
    """A name server, and listeners on the admitted address and on those beside it. An async context manager."""

    def __init__(self, authority: Authority) -> None:
        self.names = NameServer()
        #: what is listened to with TLS, and without: the same on all addresses
        self.ports: dict[str, int] = {}
        self._domain = f"t{secrets.token_hex(6)}.test"
        self._tls = authority.context([f"*.{self._domain}", "localhost", *OWN])
        self._behaviours: dict[str, Behaviour] = {}
        self._counters = {address: Counter() for address in (ADMITTED, LOOPBACK, REBOUND, MIXED, *OWN)}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Raises ConfigError: this machine has no such addresses."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.names)
            for scheme in ("https", "http"):
                self.ports[scheme] = await self._listen(scheme, stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _listen(self, scheme: str, stack: AsyncExitStack) -> int:
        """Listen on one port of all addresses; the port."""
        for _ in range(_TRIES - 1):
            with contextlib.suppress(ConfigError):
                return await self._listen_everywhere(scheme, stack)
        return await self._listen_everywhere(scheme, stack)

    async def _listen_everywhere(self, scheme: str, outer: AsyncExitStack) -> int:
        async with AsyncExitStack() as stack:
            port = await self._start(scheme, ADMITTED, 0, stack)
            for address in (LOOPBACK, REBOUND, MIXED, OWN[0]):
                await self._start(scheme, address, port, stack)
            with contextlib.suppress(ConfigError):
                # without IPv6 nothing can be sent there either
                await self._start(scheme, OWN[1], port, stack)
            outer.push_async_exit(stack.pop_all())
        return port

    async def _start(self, scheme: str, address: str, port: int, stack: AsyncExitStack) -> int:
        server = WireServer(
            partial(self._receive, address),
            host=address,
            port=port,
            tls=self._tls if scheme == "https" else None,
            counter=self._counters[address],
        )
        await server.start()
        stack.push_async_callback(server.close)
        return server.port

    def host(self, label: str, script: str) -> str:
        """A new name, and what it stands for. `label` is its first part, and not new by itself."""
        name = f"{label}-{secrets.token_hex(4)}.{self._domain}"
        self.names.script(name, script)
        return name

    def expect(self, path: str, behaviour: Behaviour) -> None:
        """Who takes the requests to a path."""
        self._behaviours[path] = behaviour

    def dialled(self, address: str) -> int:
        """How many connections have come to one of the addresses until now."""
        return self._counters[address].connections

    async def _receive(self, address: str, exchange: Exchange) -> None:
        behaviour = self._behaviours.get(exchange.request.path)
        if behaviour is None:
            await exchange.reply(Reply(status=404))
        else:
            await behaviour(address, exchange)
