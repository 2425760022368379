"""Settling: what attempts came to is recorded together, since a commit costs as much for one as for many."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

import structlog

from dispatcher.delivery.availability import until_available
from dispatcher.delivery.lanes import Lane
from dispatcher.errors import LeaseLost, StoreUnavailable
from dispatcher.store import Store
from dispatcher.store.records import Report, Settled

log = structlog.get_logger(__name__)


class Settler:
    """While one batch is being committed, the next gathers.

    `most` says how many go into one, `on_settled` is told of each: with None, if it could not be recorded.
    """

    def __init__(
        self,
        store: Store,
        *,
        most: Callable[[], int],
        on_settled: Callable[[Lane, Report, Settled | None], None],
    ) -> None:
        self._store = store
        self._most = most
        self._on_settled = on_settled
        self._waiting: deque[tuple[Lane, Report]] = deque()
        self._task: asyncio.Task[None] | None = None

    def add(self, lane: Lane, report: Report) -> None:
        """Record this attempt soon, however long the database is away."""
        self._waiting.append((lane, report))
        if self._task is None:
            self._task = asyncio.create_task(self._settle_all(), name="settler")

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
                self._tell(left, await self._store.settle([report for _, report in left]))

    async def _settle_all(self) -> None:
        try:
            while self._waiting:
                # What has its answer in the same round of the event loop goes together.
                await asyncio.sleep(0)
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._most()))]
                await self._settle(batch)
        finally:
            self._task = None

    async def _settle(self, batch: list[tuple[Lane, Report]]) -> None:
        reports = [report for _, report in batch]
        try:
            answers = await until_available(lambda: self._store.settle(reports))
        except Exception:
            if len(batch) > 1:
                # One by one: what cannot be recorded must not keep the others.
                for one in batch:
                    await self._settle([one])
                return
            # The lease is still in the database, and the scan frees leases nobody knows.
            log.exception("settle_failed_inside", delivery=reports[0].delivery_id)
            self._on_settled(*batch[0], None)
        else:
            self._tell(batch, answers)

    def _tell(self, batch: list[tuple[Lane, Report]], answers: list[Settled | LeaseLost]) -> None:
        for (lane, report), answer in zip(batch, answers, strict=True):
            if isinstance(answer, LeaseLost):
                log.warning("lease_lost", delivery=report.delivery_id, attempt=report.attempt)
                self._on_settled(lane, report, None)
            else:
                self._on_settled(lane, report, answer)
