"""Open connections between two requests."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar


class Connection(Protocol):
    """What can be kept."""

    @property
    def key(self) -> Hashable:
        """What a request must have in common with the one before to use it."""
        ...

    #: when it became idle, on the event loop's clock
    idle_since: float

    @property
    def reusable(self) -> bool:
        """Whether it is open, not too old, and at the start of its next request."""
        ...

    def close(self) -> None:
        """Close it at once; there is nothing to await."""
        ...


T = TypeVar("T", bound=Connection)


class IdleConnections(Generic[T]):
    """Open connections that wait for their next request: last in, first out by key, and bounded over all keys."""

    def __init__(self, *, limit: int, expiry_s: float) -> None:
        self._limit = limit
        self._expiry_s = expiry_s
        #: all of them, the longest idle first
        self._by_age: OrderedDict[T, None] = OrderedDict()
        #: the same ones by key, the longest idle first
        self._by_key: dict[Hashable, deque[T]] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    def take(self, key: Hashable) -> T | None:
        """The connection of this key that was used last, if one is still good."""
        while (kept := self._by_key.get(key)) is not None:
            connection = kept.pop()
            if not kept:
                del self._by_key[key]
            del self._by_age[connection]
            if connection.reusable:
                return connection
            connection.close()
        return None

    def put(self, connection: T) -> None:
        """Keep an open connection; the longest idle one of all makes room."""
        if self._closed:
            connection.close()
            return
        connection.idle_since = asyncio.get_running_loop().time()
        self._by_age[connection] = None
        kept = self._by_key.get(connection.key)
        if kept is None:
            kept = self._by_key[connection.key] = deque()
        kept.append(connection)
        while len(self._by_age) > self._limit:
            self._drop_oldest()
        if self._sweep is None:
            self._schedule()

    def close(self) -> None:
        """Close them all, and keep none from now on."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        while self._by_age:
            self._drop_oldest()

    def _schedule(self) -> None:
        if self._by_age:
            oldest = next(iter(self._by_age))
            self._sweep = asyncio.get_running_loop().call_at(oldest.idle_since + self._expiry_s, self._expire)

    def _expire(self) -> None:
        self._sweep = None
        ended_before = asyncio.get_running_loop().time() - self._expiry_s
        while self._by_age and next(iter(self._by_age)).idle_since <= ended_before:
            self._drop_oldest()
        self._schedule()

    def _drop_oldest(self) -> None:
        # Of all the longest idle, so also of its key.
        connection, _ = self._by_age.popitem(last=False)
        kept = self._by_key[connection.key]
        kept.popleft()
        if not kept:
            del self._by_key[connection.key]
        connection.close()
