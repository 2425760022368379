"""The database's clock: a machine whose own is wrong goes by it."""

from __future__ import annotations

import time

import pytest

from dispatcher.store.clock import MAX_TRIP, DatabaseClock
from tests.support.stores import Home, open_store

HOUR = 3600.0


@pytest.mark.parametrize("off", [-3 * HOUR, 3 * HOUR])
async def test_a_machine_whose_clock_is_wrong(home: Home, monkeypatch: pytest.MonkeyPatch, off: float) -> None:
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + off)
    async with open_store(home) as store:
        await store.reap()
        before = right()
        assert -60 < store.now() - before < 60
        await store.reap()
        assert store.now() >= before - 0.01, "what was just written seems to be yet to come"


def test_it_goes_on_from_what_it_was_told() -> None:
    clock = DatabaseClock()
    clock.learn(5_000, asked=time.monotonic())
    assert 5 <= clock.now() < 5 + HOUR


def test_an_answer_that_took_too_long_tells_nothing() -> None:
    clock = DatabaseClock()
    was = clock.now()
    clock.learn(5_000, asked=time.monotonic() - MAX_TRIP - 0.1)
    assert clock.now() >= was
