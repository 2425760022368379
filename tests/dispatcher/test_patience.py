"""Requests that get no answer for long, found by one timer."""

from __future__ import annotations

import asyncio

from dispatcher.delivery.lanes import Turn
from dispatcher.delivery.patience import PATIENCE, Patience
from tests.dispatcher.test_lanes import lanes_with, leased


def turns(count: int) -> list[Turn]:
    lanes = lanes_with(widest=count)
    for number in range(count):
        lanes.put(leased(f"a {number}"), 0.0)
    return [turn for _ in range(count) if (turn := lanes.take(0.0)) is not None]


async def test_each_is_told_of_once_when_its_time_is_up_and_those_that_ended_are_not() -> None:
    loop = asyncio.get_running_loop()
    lost: list[tuple[Turn, float]] = []
    patience = Patience(lambda gone: lost.extend((turn, loop.time()) for turn in gone))
    first, ended, second = turns(3)
    began = loop.time()
    patience.begin(first, began)
    patience.begin(ended, began)
    await asyncio.sleep(0.1)
    patience.begin(second, loop.time())
    patience.end(ended)
    await asyncio.sleep(PATIENCE - 0.15)
    assert not lost
    await asyncio.sleep(0.8)
    assert [turn for turn, _ in lost] == [first, second]
    assert lost[0][1] - began >= PATIENCE - 0.01
    assert lost[1][1] - began >= PATIENCE + 0.09


async def test_it_begins_anew_after_a_rest() -> None:
    lost: list[Turn] = []
    patience = Patience(lost.extend)
    first, second = turns(2)
    patience.begin(first, asyncio.get_running_loop().time())
    patience.end(first)
    await asyncio.sleep(PATIENCE + 0.1)
    patience.begin(second, asyncio.get_running_loop().time())
    await asyncio.sleep(PATIENCE + 0.2)
    assert lost == [second]
