"""A session that another process has ended: what was leased under it is not ours to send any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa

from dispatcher.account_cache import AccountCache
from dispatcher.models import lane_of
from dispatcher.store import Store
from dispatcher.store.accounts import Account
from dispatcher.store.records import LeasedDelivery
from dispatcher.store.tables import sessions
from tests.support.engines import Process, a_process
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


Gated = Process[GatedAccounts]


async def leased_by(process: Gated, receiver: Receiver) -> LeasedDelivery:
    """A delivery that this process has just leased."""
    origin = receiver.url
    await accept(process.store, new_task(origin=origin, url=f"{origin}/x"))
    [delivery] = await lease(process.store, 1, lane=lane_of(ACCOUNT, origin))
    assert process.engine.reserve(delivery.lane, delivery.size)
    return delivery


async def lose_session(process: Gated) -> None:
    """Another process ends the session, and frees what hangs on it; then the next heartbeat comes."""
    async with process.store.database.write() as connection:
        await connection.execute(sa.delete(sessions).where(sessions.c.id == process.store.session))
    await process.heartbeat._beat()
    while await process.store.reap():
        pass


@pytest.fixture
async def process(home: Home) -> AsyncIterator[Gated]:
    async with a_process(home, GatedAccounts) as process:
        yield process


@pytest.mark.parametrize("was_taken_in", [False, True])
async def test_what_was_leased_under_it_is_not_sent_under_the_next(
    process: Gated, receiver: Receiver, was_taken_in: bool
) -> None:
    """Whether it was still on its way from its commit, or just about to be sent."""
    lost = await leased_by(process, receiver)
    if was_taken_in:
        process.engine.hand_off([lost])
        # It has its turn, and waits for its account.
        await asyncio.sleep(0)
    await lose_session(process)
    if not was_taken_in:
        process.engine.hand_off([lost])
    process.accounts.gate.set()
    with Receiver() as other:
        process.engine.hand_off([await leased_by(process, other)])
        await asyncio.to_thread(other.wait_for, 1)
        await process.engine.settled()
    assert receiver.received == []
    assert await reconciled(process.store) == {"accepted": 2, "delivered": 1, "pending": 1}
