"""Settling: what attempts came to is recorded together, since a commit costs as much for one as for many."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence

import structlog

from dispatcher.delivery.availability import until_available
from dispatcher.delivery.governor import LARGEST_SETTLE
from dispatcher.errors import LeaseLost, StoreUnavailable
from dispatcher.store import Store
from dispatcher.store.records import Report, Settled

log = structlog.get_logger(__name__)

#: attempts that wait to be recorded, from which on none is to be made that can wait: they take memory, and if this
#: process were killed all of them would be made again
MANY = 2 * LARGEST_SETTLE

_Record = Callable[[Sequence[Report]], Awaitable[list[Settled | LeaseLost]]]


class Settler:
    """While one batch is being committed, the next gathers.

    `most` says how many go into one, `on_settled` is told of each: with None, if it could not be recorded.
    """

    def __init__(
        self,
        store: Store,
        *,
        most: Callable[[], int],
        on_settled: Callable[[Report, Settled | None], None],
    ) -> None:
        self._store = store
        self._most = most
        self._on_settled = on_settled
        self._waiting: deque[Report] = deque()
        self._task: asyncio.Task[None] | None = None

    def add(self, reports: Iterable[Report]) -> None:
        """Record these attempts soon, however long the database is away."""
        self._waiting.extend(reports)
        if self._waiting and self._task is None:
            self._task = asyncio.create_task(self._settle_all(), name="settler")

    @property
    def is_behind(self) -> bool:
        """Whether sending has to wait: attempts are made faster than they are recorded."""
        return len(self._waiting) >= MANY

    async def join(self) -> None:
        """Wait until all is recorded."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def stop(self) -> None:
        """Record what is left, if the database is there."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        left, self._waiting = list(self._waiting), deque()
        if left:
            with contextlib.suppress(StoreUnavailable):
                await self._settle(left, self._store.settle)

    async def _settle_all(self) -> None:
        try:
            while self._waiting:
                # What has its answer in the same round of the event loop goes together.
                await asyncio.sleep(0)
                # What waits must not grow for as long as there are callers: of a long row half goes at once.
                most = max(self._most(), min(LARGEST_SETTLE, len(self._waiting) // 2))
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), most))]
                try:
                    await self._settle(batch, self._whenever)
                except asyncio.CancelledError:
                    # `stop` records it; of those that are recorded by then it hears that their leases are over.
                    self._waiting.extendleft(reversed(batch))
                    raise
        finally:
            self._task = None

    async def _whenever(self, reports: Sequence[Report]) -> list[Settled | LeaseLost]:
        return await until_available(lambda: self._store.settle(reports))

    async def _settle(self, batch: list[Report], record: _Record) -> None:
        try:
            answers = await record(batch)
        except StoreUnavailable:
            raise
        except Exception:
            if len(batch) > 1:
                # One by one: what cannot be recorded must not keep the others.
                for one in batch:
                    await self._settle([one], record)
                return
            # The lease is still in the database, and the scan frees leases nobody knows.
            log.exception("settle_failed_inside", delivery=batch[0].delivery_id)
            self._on_settled(batch[0], None)
        else:
            self._tell(batch, answers)

    def _tell(self, batch: list[Report], answers: list[Settled | LeaseLost]) -> None:
        for report, answer in zip(batch, answers, strict=True):
            if isinstance(answer, LeaseLost):
                log.warning("lease_lost", delivery=report.delivery_id, attempt=report.attempt)
                self._on_settled(report, None)
            else:
                self._on_settled(report, answer)
