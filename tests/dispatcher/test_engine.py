"""How much an engine has in hand."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest

from dispatcher.account_cache import AccountCache
from dispatcher.config import load
from dispatcher.delivery.engine import MAX_LEASE
from dispatcher.delivery.governor import LARGEST_SETTLE
from dispatcher.delivery.settler import MANY
from dispatcher.errors import LeaseLost
from dispatcher.models import lane_of
from dispatcher.store.records import Report, Settled
from tests.support.engines import a_process
from tests.support.patience import PATIENCE
from tests.support.receiver import Receiver
from tests.support.stores import ACCOUNT, Home, accept, delivery_rows, new_task, reconciled

#: looks in a row that find no more requests, until it is believed that none are coming
LOOKS = 30


async def test_what_is_sent_and_not_recorded_does_not_pile_up(
    home: Home, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed leaves all of it to be sent again."""
    count = MANY + 4 * MAX_LEASE
    gate = asyncio.Event()
    async with a_process(home, AccountCache) as process:
        store, engine = process.store, process.engine
        record = store.settle

        async def slow(reports: Sequence[Report]) -> list[Settled | LeaseLost]:
            await gate.wait()
            return await record(reports)

        monkeypatch.setattr(store, "settle", slow)
        await accept(store, *(new_task(origin=receiver.url, url=f"{receiver.url}/x") for _ in range(count)))
        await engine.start()
        async with asyncio.timeout(PATIENCE):
            await asyncio.to_thread(receiver.wait_for, MANY)
            sent, looks = 0, 0
            while looks < LOOKS:
                await asyncio.sleep(0.01)
                looks = looks + 1 if len(receiver.received) == sent else 0
                sent = len(receiver.received)
        # What waits to be recorded, what is being recorded, and what was under way when it had become too much.
        assert sent <= MANY + LARGEST_SETTLE + load(data_dir=home.data_dir).lane_concurrency
        assert len(await delivery_rows(store, state="leased")) <= sent + MAX_LEASE
        # Nor does what is just accepted make it more: it waits its turn in the database.
        assert not engine.reserve(lane_of(ACCOUNT, "http://127.0.0.1:9"), 1)
        gate.set()
        await asyncio.to_thread(receiver.wait_for, count)
        await engine.settled()
        assert await reconciled(store) == {"accepted": count, "delivered": count}
        await engine.stop(1)
    assert set(Counter(request.delivery for request in receiver.received).values()) == {1}
