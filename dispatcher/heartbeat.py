"""Keeps this process's session alive: what hangs on it are leases, and the right to commit."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import structlog

from dispatcher.loops import repeat
from dispatcher.store import Store

log = structlog.get_logger(__name__)

#: heartbeats in the time that a session lives without one
BEATS = 6


class Heartbeat:
    """Prolongs the session again and again, and begins a new one when it is over. `start()` it once."""

    def __init__(self, store: Store, *, ttl: float) -> None:
        self._store = store
        self._ttl = ttl
        #: monotonic time until which the session lives for certain
        self.until = -math.inf
        self._on_beat: Callable[[], None] = _nothing
        self._on_over: Callable[[], None] = _nothing
        self._task: asyncio.Task[None] | None = None

    def tell(self, *, on_beat: Callable[[], None], on_over: Callable[[], None]) -> None:
        """Call these after each beat, and when what was leased under a session is lost to us."""
        self._on_beat, self._on_over = on_beat, on_over

    async def start(self) -> None:
        """Begin. Afterwards the session lives."""
        await self._beat()
        self._task = asyncio.create_task(repeat(self._keep), name="heartbeat")

    async def stop(self) -> None:
        """Prolong it no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _keep(self) -> None:
        await self._beat()
        self._on_beat()
        await asyncio.sleep(self._ttl / BEATS)

    async def _beat(self) -> None:
        started = asyncio.get_running_loop().time()
        if not await self._store.heartbeat():
            log.warning("session_over")
            self.until = -math.inf
            self._on_over()
            await self._store.renew_session()
        self.until = started + self._ttl


def _nothing() -> None:
    """An API alone has no leases that it could lose."""
