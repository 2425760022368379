"""What has to happen from time to time, apart from any request (APScheduler)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from dispatcher.config import Settings
from dispatcher.errors import StoreUnavailable
from dispatcher.loops import repeat
from dispatcher.store import Store

log = structlog.get_logger(__name__)

DAY = 86_400.0
#: batches that one run of a job handles, so that it never keeps the database busy for long
MAX_BATCHES = 500
#: seconds between two looks at the machine's clock, and by how many it must have been set to matter
CLOCK_EVERY = 5.0
CLOCK_STEP = 1.0


class Maintenance:
    """Frees dead leases and locks, ends windows, and deletes what is old; each in small batches."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._age = settings.retention_days * DAY
        self._scheduler = AsyncIOScheduler(timezone=UTC)
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Free what dead processes left, then keep the schedule."""
        while await self._store.reap():
            pass
        for name, seconds, step in (
            ("reap", 10, self._store.reap),
            ("end_abandoned", 10, self._store.end_abandoned),
            ("end_windows", 15, self._store.end_windows),
            ("end_holds", 30, self._store.end_holds),
            ("end_secrets", 30, self._store.end_secrets),
            ("forget_answers", 600, self._store.forget_answers),
            ("delete_old", 300, self._delete_old),
            ("keep_partitions", 1800, self._keep_partitions),
        ):
            self._scheduler.add_job(
                self._repeat,
                "interval",
                args=(name, step),
                seconds=seconds,
                next_run_time=datetime.now(UTC) + timedelta(seconds=min(seconds, 10)),
                max_instances=1,
                coalesce=True,
                misfire_grace_time=None,
            )
        self._scheduler.start()
        self._watch = asyncio.create_task(repeat(self._mind_the_clock), name="mind_the_clock")

    async def stop(self) -> None:
        """Plan nothing more."""
        if self._watch is not None:
            self._watch.cancel()
        self._scheduler.shutdown(wait=False)

    async def _mind_the_clock(self) -> None:
        """The schedule goes by the machine's clock: when that is set back by an hour, all jobs would wait for one."""
        ahead = _ahead()
        await asyncio.sleep(CLOCK_EVERY)
        if abs(_ahead() - ahead) > CLOCK_STEP:
            log.warning("clock_was_set", seconds=round(_ahead() - ahead, 1))
            for job in self._scheduler.get_jobs():
                job.modify(next_run_time=datetime.now(UTC))

    async def _delete_old(self) -> int:
        return await self._store.delete_old(self._age)

    async def _keep_partitions(self) -> int:
        return await self._store.keep_partitions(self._age)

    async def _repeat(self, name: str, step: Callable[[], Awaitable[int]]) -> None:
        """Run a step until it has nothing left to do."""
        handled = 0
        try:
            for _ in range(MAX_BATCHES):
                done = await step()
                handled += done
                if not done:
                    break
        except StoreUnavailable as exc:
            log.warning("maintenance_put_off", job=name, reason=str(exc))
        if handled:
            log.info("maintenance", job=name, rows=handled)


def _ahead() -> float:
    """How far the machine's clock is ahead of the monotonic one, which nobody sets."""
    return time.time() - time.monotonic()
