"""Threads for plain functions. None can be stopped, so one that outlasts its timeout counts until it ends."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import threading
from collections.abc import Callable
from typing import Any


class Threads:
    """Calls functions in threads of their own.

    The threads are daemons, unlike those of any pool, so that one that hangs does not keep the program from ending.
    """

    def __init__(self, *, on_end: Callable[[], None]) -> None:
        #: told when an abandoned thread has ended
        self._on_end = on_end
        #: threads still running whose callers have given up: each takes the place of a task
        self.abandoned = 0

    async def call(self, function: Callable[[Any], Any], payload: Any) -> Any:
        """The function's result, or what it raises. When cancelled, the thread is left to end by itself."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()

        def settle(settled: Callable[[], None]) -> None:
            if done.cancelled():
                self.abandoned -= 1
                self._on_end()
            else:
                settled()

        def work() -> None:
            settled: Callable[[], None]
            try:
                settled = functools.partial(done.set_result, function(payload))
            except StopIteration as exc:
                # A future cannot hold it.
                settled = functools.partial(done.set_exception, RuntimeError(f"the processor raised {exc!r}"))
            except BaseException as exc:  # noqa: BLE001 - it is raised where the function was called from
                settled = functools.partial(done.set_exception, exc)
            # When the program is ending, the loop may be closed.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(settle, settled)

        threading.Thread(target=contextvars.copy_context().run, args=(work,), name="processor", daemon=True).start()
        try:
            return await done
        except asyncio.CancelledError:
            if done.cancelled():
                self.abandoned += 1
            raise
