"""Accounts' settings in memory: read once for all that wait, and again when they have changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from dispatcher.account_cache import AccountCache
from dispatcher.store import Store, accounts
from subscriptions.secrets import Secret
from tests.support.stores import Home, open_store


@pytest.fixture
async def store(home: Home) -> AsyncIterator[Store]:
    async with open_store(home) as store:
        yield store


async def _set_secret(store: Store, secret: str) -> None:
    await accounts.change_account(
        store.database,
        store.keyring,
        "acme",
        lambda account: replace(account, default_secret=Secret(secret)),
        actor="test",
    )


async def test_those_that_wait_share_one_reading(store: Store) -> None:
    cache = AccountCache(store)
    first, second = await asyncio.gather(cache.get("acme"), cache.get("acme"))
    assert first is second
    assert cache.known("acme") is first


async def test_a_reading_that_began_before_a_change_is_not_kept(store: Store) -> None:
    cache = AccountCache(store)
    await _set_secret(store, "the-first-secret")
    early = asyncio.create_task(cache.get("acme"))
    await asyncio.sleep(0)
    await _set_secret(store, "the-second-secret")
    cache.forget("acme")
    late = await cache.get("acme")
    await early
    assert late.default_secret == Secret("the-second-secret")
    assert cache.known("acme") is late


async def test_one_that_goes_away_leaves_the_reading_to_the_others(store: Store) -> None:
    cache = AccountCache(store)
    impatient = asyncio.create_task(cache.get("acme"))
    patient = asyncio.create_task(cache.get("acme"))
    await asyncio.sleep(0)
    impatient.cancel()
    assert (await patient).id == "acme"
