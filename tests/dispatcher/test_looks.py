"""What is about to be sent is held against what its subscription is now: one look for all who ask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import sqlalchemy as sa

from dispatcher.errors import StoreUnavailable
from dispatcher.store import Store, looks
from dispatcher.store.records import Endpoint
from tests.support.stores import Home, lease_for, new_event, open_store, publish, subscribe, who


@pytest.fixture
async def store(home: Home) -> AsyncIterator[Store]:
    async with open_store(home) as opened:
        yield opened


@contextmanager
def reads(store: Store) -> Iterator[list[str]]:
    """The statements by which versions are read meanwhile."""
    seen: list[str] = []
    read = store.database.read

    def counted() -> object:
        seen.append("read")
        return read()

    store.database.read = counted  # type: ignore[method-assign,assignment]  # it is watched, and does what it does
    yield seen
    del store.database.read


async def endpoint_of(store: Store, id_: str) -> Endpoint:
    await publish(store, new_event())
    return (await lease_for(store, id_))[0].endpoint


async def test_one_look_is_for_all_who_ask_and_good_for_a_while(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "GOOD_FOR", 3_600.0)
    ids = [await subscribe(store, f"s{n}") for n in range(3)]
    endpoints = [await endpoint_of(store, id_) for id_ in ids]
    with reads(store) as seen:
        assert all(await asyncio.gather(*(store.is_current(endpoint) for endpoint in endpoints * 4)))
        assert all([await store.is_current(endpoint) for endpoint in endpoints])
    assert len(seen) == 1


async def test_what_was_seen_too_long_ago_is_looked_at_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "GOOD_FOR", 0.0)
    id_ = await subscribe(store)
    endpoint = await endpoint_of(store, id_)
    assert await store.is_current(endpoint)
    # as by another process: this one hears nothing of it
    async with store.database.write() as connection:
        await connection.execute(sa.text("UPDATE subscriptions SET version = version + 1"))
    assert not await store.is_current(endpoint)


async def test_a_change_that_is_made_here_is_seen_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "GOOD_FOR", 3_600.0)
    id_ = await subscribe(store)
    endpoint = await endpoint_of(store, id_)
    assert await store.is_current(endpoint)
    await store.change_subscription(who(store), id_, lambda one: replace(one, rate_limit=7.0))
    assert not await store.is_current(endpoint)
    await store.delete_subscription(who(store), id_)
    assert not await store.is_current(endpoint)


async def test_who_goes_away_takes_the_look_from_nobody(store: Store) -> None:
    endpoint = await endpoint_of(store, await subscribe(store))
    first, second = (asyncio.create_task(store.is_current(endpoint)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second
    assert first.cancelled()


async def test_a_look_that_fails_is_not_remembered(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = await endpoint_of(store, await subscribe(store))

    def unavailable() -> object:
        raise StoreUnavailable("for this test")

    with monkeypatch.context() as patch:
        patch.setattr(store.database, "read", unavailable)
        answers = await asyncio.gather(*(store.is_current(endpoint) for _ in range(2)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [StoreUnavailable] * 2
    assert await store.is_current(endpoint)
