"""A session that another process has ended: what was leased under it is not ours to send any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import sqlalchemy as sa

from dispatcher.account_cache import AccountCache
from dispatcher.config import load
from dispatcher.delivery.engine import Engine
from dispatcher.egress import EgressPolicy
from dispatcher.heartbeat import Heartbeat
from dispatcher.installation import open_installation
from dispatcher.models import lane_of
from dispatcher.serving import server
from dispatcher.store import Store
from dispatcher.store.accounts import Account
from dispatcher.store.records import LeasedDelivery
from dispatcher.store.tables import sessions
from tests.support.receiver import Receiver
from tests.support.stores import ACCOUNT, Home, accept, lease, new_task, reconciled


class GatedAccounts(AccountCache):
    """Settings of accounts, which are there when the gate is open."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.gate = asyncio.Event()

    def known(self, _account: str) -> Account | None:
        """Nothing, so that they have to be waited for."""
        return None

    async def get(self, account: str) -> Account:
        """The settings, when the gate is open."""
        await self.gate.wait()
        return await super().get(account)


@dataclass(frozen=True, kw_only=True)
class Process:
    """What of a process sends, without what would lease by itself."""

    store: Store
    heartbeat: Heartbeat
    engine: Engine
    accounts: GatedAccounts

    async def leased(self, receiver: Receiver) -> LeasedDelivery:
        """A delivery that this process has just leased."""
        origin = receiver.url
        await accept(self.store, new_task(origin=origin, url=f"{origin}/x"))
        [delivery] = await lease(self.store, 1, lane=lane_of(ACCOUNT, origin))
        assert self.engine.reserve(delivery.lane, delivery.size)
        return delivery

    async def lose_session(self) -> None:
        """Another process ends the session, and frees what hangs on it; then the next heartbeat comes."""
        async with self.store.database.write() as connection:
            await connection.execute(sa.delete(sessions).where(sessions.c.id == self.store.session))
        await self.heartbeat._beat()
        while await self.store.reap():
            pass


@pytest.fixture
async def process(home: Home) -> AsyncIterator[Process]:
    settings = load(data_dir=home.data_dir, database_url=home.database_url, dev=True)
    installation = await open_installation(settings)
    store = await Store.open(installation.database, installation.keyring, session_ttl=60, alone=True)
    heartbeat, accounts = Heartbeat(store, ttl=60), GatedAccounts(store)
    async with server._sender(settings, installation, EgressPolicy.of(settings), clock=store.now) as sender:
        engine = Engine(store, sender, accounts, settings, heartbeat)
        await heartbeat.start()
        yield Process(store=store, heartbeat=heartbeat, engine=engine, accounts=accounts)
        await heartbeat.stop()
    await store.close()
    await installation.database.close()


@pytest.mark.parametrize("was_taken_in", [False, True])
async def test_what_was_leased_under_it_is_not_sent_under_the_next(
    process: Process, receiver: Receiver, was_taken_in: bool
) -> None:
    """Whether it was still on its way from its commit, or just about to be sent."""
    lost = await process.leased(receiver)
    if was_taken_in:
        process.engine.hand_off(lost)
        # It has its turn, and waits for its account.
        await asyncio.sleep(0)
    await process.lose_session()
    if not was_taken_in:
        process.engine.hand_off(lost)
    process.accounts.gate.set()
    with Receiver() as other:
        process.engine.hand_off(await process.leased(other))
        await asyncio.to_thread(other.wait_for, 1)
        await process.engine.settled()
    assert receiver.received == []
    assert await reconciled(process.store) == {"accepted": 2, "delivered": 1, "pending": 1}
