"""Work that is too big for one transaction, done in small steps beside everything else.

Fan-out to very many, deliveries to hold or to release, redelivery in bulk, notices. All of it stands in the database,
so whoever asked for it need not wait, and a process that dies leaves the rest to the next. What becomes due by a step
is news of its commit.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from dispatcher.loops import repeat
from dispatcher.store import Store

#: seconds between looks for work that no hint told of
LOOK_INTERVAL = 10.0
#: seconds between two steps of a release
RELEASE_INTERVAL = 0.25
#: how long a step rests, as a multiple of the time that it took: others write in between
REST = 4.0

#: does one step; answers the seconds until there may be more to do
Step = Callable[[], Awaitable[float | None]]


class Chores:
    """Does the steps. `start()` it once; `wake()` it when there is something to do."""

    def __init__(self, store: Store, *, release_rate: float, source: str) -> None:
        self._store = store
        self._release_limit = max(1, round(release_rate * RELEASE_INTERVAL))
        self._source = source
        #: each with its rest
        self._steps: list[tuple[Step, float]] = [
            (step, REST) for step in (self._fan_out, self._move, self._redeliver, self._tell)
        ]
        self._wakes: dict[str, asyncio.Event] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def add(self, step: Step, *, rest: float = REST) -> None:
        """Have one more kind of step done, known by its function's name. Before the start."""
        self._steps.append((step, rest))

    def start(self) -> None:
        """Begin."""
        for step, rest in self._steps:
            wake = self._wakes[step.__name__.strip("_")] = asyncio.Event()
            self._tasks.append(asyncio.create_task(repeat(self._doing(step, wake, rest)), name=step.__name__))

    async def stop(self) -> None:
        """Do no more; what is left stays in the database."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def wake(self, step: str | None = None) -> None:
        """Tell that there may be something to do: for the steps of this name, or for all."""
        for name, wake in self._wakes.items():
            if step is None or step == name:
                wake.set()

    def _doing(self, step: Step, wake: asyncio.Event, rest: float) -> Callable[[], Awaitable[None]]:
        async def once() -> None:
            wake.clear()
            loop = asyncio.get_running_loop()
            started = loop.time()
            more_in = await step()
            if more_in is not None and more_in < 1.0:
                # A pace is kept, whoever calls.
                await asyncio.sleep(max(more_in, rest * (loop.time() - started)))
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(more_in or LOOK_INTERVAL, LOOK_INTERVAL)):
                    await wake.wait()

        once.__name__ = step.__name__.strip("_")
        return once

    async def _fan_out(self) -> float | None:
        done = await self._store.fan_out()
        return 0.0 if done.count else None

    async def _move(self) -> float | None:
        moved = await self._store.move_deliveries(self._release_limit)
        return RELEASE_INTERVAL if moved.unfinished else None

    async def _redeliver(self) -> float | None:
        done = await self._store.step_redeliveries()
        return 0.0 if done.unfinished else None

    async def _tell(self) -> float | None:
        return (await self._store.tell(self._source)).more_in
