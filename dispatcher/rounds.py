"""What becomes ready in one round of the event loop, done together and step by step.

A processor has at hand what it did last. Items that each walk through all steps by themselves find it taken up with
the end of them when they come to the beginning; where each step is taken with all items before the next one, it is
there for all but the first. That halves what a step costs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import structlog

log = structlog.get_logger(__name__)

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

#: items of a round at most, so that others have their turn
MOST = 64


class Rounds(Generic[Item]):
    """Gathers items, and gives those of one round to `work`, which has to see to what becomes of each."""

    def __init__(self, work: Callable[[list[Item]], object], *, most: int | None = MOST) -> None:
        self._work = work
        self._most = most
        self._waiting: list[Item] = []

    def join(self, item: Item) -> None:
        """Have an item take part in the next round."""
        if not self._waiting:
            self._call()
        self._waiting.append(item)

    def _call(self) -> None:
        asyncio.get_running_loop().call_soon(self._go)

    def _go(self) -> None:
        items, self._waiting = self._waiting, []
        if self._most is not None and len(items) > self._most:
            items, self._waiting = items[: self._most], items[self._most :]
            self._call()
        self._work(items)


def each(
    step: Callable[[Item], object], items: Iterable[Item], *, failed: Callable[[Item, Exception], object]
) -> list[Item]:
    """Take a step with each item; answers those with which it could be taken. `failed` is told of the others."""
    taken: list[Item] = []
    for item in items:
        try:
            step(item)
        except Exception as exc:  # noqa: BLE001 - it is this item's, and `failed` hears of it
            _tell(failed, item, exc)
        else:
            taken.append(item)
    return taken


def _tell(failed: Callable[[Item, Exception], object], item: Item, error: Exception) -> None:
    """The others go on even where this cannot be told. Only the kind of error is logged: its text may hold anything."""
    try:
        failed(item, error)
    except Exception as exc:  # noqa: BLE001 - there is nobody left to tell
        log.error("round_failed_inside", error=type(exc).__qualname__)


def tell(waiting: asyncio.Future[Outcome], outcome: Outcome | BaseException) -> None:
    """Give what came of an item to whoever awaits it; an exception is raised to them."""
    if waiting.done():
        # They went away, which cancels nothing else.
        return
    if isinstance(outcome, BaseException):
        waiting.set_exception(outcome)
        # They may yet go away; then nobody collects the exception, and that is fine.
        waiting.exception()
    else:
        waiting.set_result(outcome)
