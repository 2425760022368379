"""Requests that get no answer for long, found by one timer."""

from __future__ import annotations

import asyncio

from dispatcher.delivery.lanes import Turn
from dispatcher.delivery.patience import EARLY, PATIENCE, Patience
from tests.dispatcher.test_lanes import lanes_with, leased
from tests.support.patience import PROMPTLY


def turns(count: int) -> list[Turn]:
    lanes = lanes_with(widest=count)
    for number in range(count):
        lanes.put(leased(f"a {number}"), 0.0)
    return [turn for _ in range(count) if (turn := lanes.take(0.0)) is not None]


class Lost:
    """Turns that were lost, and when."""

    def __init__(self) -> None:
        self.turns: list[tuple[Turn, float]] = []
        self._more = asyncio.Event()

    def note(self, turns: list[Turn]) -> None:
        self.turns += [(turn, asyncio.get_running_loop().time()) for turn in turns]
        self._more.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(PROMPTLY):
            while len(self.turns) < count:
                self._more.clear()
                await self._more.wait()


async def test_each_is_told_of_once_when_its_time_is_up_and_those_that_ended_are_not() -> None:
    loop, lost = asyncio.get_running_loop(), Lost()
    patience = Patience(lost.note)
    first, ended, second = turns(3)
    began = loop.time()
    patience.begin(first, began)
    patience.begin(ended, began)
    await asyncio.sleep(0.1)
    later = loop.time()
    patience.begin(second, later)
    patience.end(ended)
    await lost.until(2)
    assert [turn for turn, _ in lost.turns] == [first, second]
    assert lost.turns[0][1] - began >= PATIENCE - EARLY
    assert lost.turns[1][1] - later >= PATIENCE - EARLY


async def test_it_begins_anew_after_a_rest() -> None:
    loop, lost = asyncio.get_running_loop(), Lost()
    patience = Patience(lost.note)
    first, second = turns(2)
    patience.begin(first, loop.time())
    patience.end(first)
    # its timer goes off, and finds nobody
    await asyncio.sleep(PATIENCE + 0.1)
    patience.begin(second, loop.time())
    await lost.until(1)
    assert [turn for turn, _ in lost.turns] == [second]
