"""Two processes at the same rows of PostgreSQL: what one is at, the other leaves alone or waits for, and none hangs."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
import sqlalchemy as sa

from dispatcher.errors import StoreUnavailable
from dispatcher.store import Store, holding, upkeep
from dispatcher.store.tables import attempts, sessions
from subscriptions.models import Movement, Ordering
from tests.support.stores import (
    Home,
    accept,
    delivery_rows,
    enable,
    lease,
    lease_for,
    new_event,
    new_task,
    open_store,
    publish,
    reconciled,
    settle,
    subscribe,
    subscription_row,
    who,
)

#: more than one step moves, and fewer than take long
COUNT = 60
STEP = 20


@pytest.fixture
async def two(tmp_path: Path, postgres_url: str) -> AsyncIterator[tuple[Store, Store]]:
    """Two processes, each with connections of its own."""
    home = Home(data_dir=tmp_path / "data", database_url=postgres_url)
    async with open_store(home, alone=False) as one, open_store(home, alone=False) as other:
        yield one, other


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps so small that it takes several."""
    monkeypatch.setattr(holding, "STEP", STEP)
    monkeypatch.setattr(upkeep, "BATCH", STEP)


@asynccontextmanager
async def locked(url: str, query: str, *parameters: object) -> AsyncIterator[None]:
    """Somebody is at these rows, and takes his time."""
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            assert await connection.fetch(f"{query} FOR UPDATE", *parameters)
            yield
    finally:
        await connection.close()


async def no_deadlock(url: str) -> None:
    """PostgreSQL has had to break none."""
    connection = await asyncpg.connect(url)
    try:
        query = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        assert await connection.fetchval(query) == 0
    finally:
        await connection.close()


async def by_both(stores: tuple[Store, Store], step: Callable[[Store], Awaitable[int]]) -> list[int]:
    """Have both take steps at once until there is none left to take; how many rows each step had."""

    async def steps(store: Store) -> list[int]:
        taken = []
        # One that finds all of it locked has nothing to do in this moment.
        for _ in range(10 * COUNT):
            taken.append(await step(store))
            if taken[-3:] == [0, 0, 0]:
                break
        return taken

    return [count for counts in await asyncio.gather(*map(steps, stores)) for count in counts]


async def moves(store: Store) -> int:
    """One step of movements."""
    return (await store.move_deliveries(STEP)).count


# --- movements --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordering", Ordering)
async def test_each_delivery_is_moved_by_one_of_them(
    two: tuple[Store, Store], ordering: Ordering, postgres_url: str, small_steps: None
) -> None:
    one, other = two
    ids = [await subscribe(one, f"s{number}", ordering=ordering) for number in range(2)]
    await publish(one, *(new_event(ordering_key=str(number % 3)) for number in range(COUNT)))
    total = COUNT * len(ids)

    for id_ in ids:
        await one.disable_subscription(who(one), id_)
    assert sum(await by_both(two, moves)) == total
    assert await reconciled(one) == {"accepted": total, "held": total}
    assert [(await subscription_row(one, id_))["movement"] for id_ in ids] == [None, None]

    await enable(one, ids[0], Movement.RELEASE)
    await enable(other, ids[1], Movement.DISCARD)
    assert sum(await by_both(two, moves)) == total
    assert await reconciled(one) == {
        "accepted": total + 2,
        "delivered": 2,
        "pending": COUNT,
        "cancelled": COUNT,
    }
    await no_deadlock(postgres_url)


async def test_what_moves_is_sent_and_settled_at_the_same_time(
    two: tuple[Store, Store], postgres_url: str, small_steps: None
) -> None:
    """Disabled in the midst of it, by one process, while the other sends: each delivery arrives, or is held."""
    one, other = two
    id_ = await subscribe(one, ordering=Ordering.FIFO_BY_KEY)
    await publish(one, *(new_event(ordering_key=str(number)) for number in range(COUNT)))

    async def send() -> int:
        sent = 0
        while leased := await lease_for(other, id_, limit=5):
            for delivery in leased:
                await settle(other, delivery)
                sent += 1
        return sent

    async def disable() -> int:
        await one.disable_subscription(who(one), id_)
        return sum(await by_both((one, other), moves))

    sent, held = await asyncio.gather(send(), disable())
    # Who found the other at it for all of its time has left something to do.
    held += sum(await by_both(two, moves))
    # What was on its way to be sent when it was disabled is held by whoever leases it.
    counts = await reconciled(one)
    assert counts.get("delivered", 0) == sent
    assert counts.get("held", 0) >= held
    assert counts.get("delivered", 0) + counts.get("held", 0) == COUNT == counts["accepted"]
    await no_deadlock(postgres_url)


async def test_a_subscription_that_somebody_is_at_keeps_no_other_from_moving(
    two: tuple[Store, Store], postgres_url: str
) -> None:
    one, other = two
    ids = [await subscribe(one, f"s{number}") for number in range(2)]
    await publish(one, new_event())
    for id_ in ids:
        await one.disable_subscription(who(one), id_)
    async with locked(postgres_url, "SELECT id FROM subscriptions WHERE id = $1", ids[0]):
        moved = await other.move_deliveries(STEP)
        assert moved.count == 1
        [held] = await delivery_rows(one, state="held")
        assert held["subscription_id"] == ids[1]
    assert sum(await by_both(two, moves)) == 1
    assert await reconciled(one) == {"accepted": 2, "held": 2}


# --- reaping ----------------------------------------------------------------------------------------------


async def left_by_a_dead_process(one: Store, count: int) -> None:
    """Leases of a process that has ended without giving them back."""
    await accept(one, *(new_task() for _ in range(count)))
    dead = await Store.open(one.database, one.keyring, session_ttl=60, alone=False)
    assert len(await lease(dead, count)) == count
    await dead.close()


async def expire(store: Store, session: str) -> None:
    """Let a session's heartbeat be overdue."""
    async with store.database.write() as connection:
        await connection.execute(sa.update(sessions).where(sessions.c.id == session).values(expires_at=0))


async def attempts_on_record(store: Store) -> Counter[str]:
    async with store.database.read() as connection:
        return Counter(await connection.scalars(sa.select(attempts.c.delivery_id)))


async def test_each_lease_is_freed_by_one_of_them(
    two: tuple[Store, Store], postgres_url: str, small_steps: None
) -> None:
    one, _ = two
    await left_by_a_dead_process(one, COUNT)
    assert sum(await by_both(two, Store.reap)) == COUNT
    assert set((await attempts_on_record(one)).values()) == {1}
    assert await reconciled(one) == {"accepted": COUNT, "pending": COUNT}
    assert {row["repeats"] for row in await delivery_rows(one)} == {1}
    await no_deadlock(postgres_url)


async def test_a_delivery_that_somebody_is_at_is_freed_later(two: tuple[Store, Store], postgres_url: str) -> None:
    one, other = two
    await left_by_a_dead_process(one, 3)
    [first, *_] = await delivery_rows(one)
    async with locked(postgres_url, "SELECT id FROM deliveries WHERE id = $1", first["id"]):
        assert await other.reap() == 2
        assert [row["id"] for row in await delivery_rows(one, state="leased")] == [first["id"]]
    assert await other.reap() == 1
    assert await reconciled(one) == {"accepted": 3, "pending": 3}


async def test_what_is_freed_and_leased_anew_at_once_is_never_two_at_a_time(
    two: tuple[Store, Store], postgres_url: str
) -> None:
    """One frees, the other leases what was freed: each lease has a number of its own."""
    one, other = two
    await left_by_a_dead_process(one, COUNT)
    _, leased = await asyncio.gather(by_both(two, Store.reap), lease(other, COUNT))
    leased += await lease(other, COUNT)
    assert len({delivery.id for delivery in leased}) == len(leased) == COUNT
    assert {delivery.attempt for delivery in leased} == {2}
    for delivery in leased:
        await settle(other, delivery)
    assert await reconciled(one) == {"accepted": COUNT, "delivered": COUNT}
    assert set((await attempts_on_record(one)).values()) == {2}
    await no_deadlock(postgres_url)


async def test_whoever_settles_while_his_session_is_ended_has_settled_or_has_lost_it(
    two: tuple[Store, Store], postgres_url: str
) -> None:
    """Each delivery has one fate, and one attempt, whoever comes first."""
    late, other = two
    await accept(late, *(new_task() for _ in range(COUNT)))
    leased = await lease(late, COUNT)

    begun = asyncio.Event()

    async def settle_all() -> int:
        for number, delivery in enumerate(leased):
            if number == COUNT // 4:
                begun.set()
            try:
                await settle(late, delivery)
            except StoreUnavailable:
                return number
        return COUNT

    settling = asyncio.create_task(settle_all())
    await begun.wait()
    [session] = {row["session"] for row in await delivery_rows(late, state="leased")}
    await expire(other, session)
    freed = 0
    while not settling.done():
        freed += await other.reap()
    settled = await settling
    freed += await other.reap()

    assert freed == COUNT - settled
    counts = await reconciled(other)
    assert (counts["accepted"], counts["delivered"], counts.get("pending", 0)) == (COUNT, settled, freed)
    assert set((await attempts_on_record(other)).values()) == {1}
    await no_deadlock(postgres_url)


async def test_a_session_that_somebody_is_at_holds_nobody_up(two: tuple[Store, Store], postgres_url: str) -> None:
    """A transaction of a process that died may live on for a while: it has its session's row."""
    one, other = two
    await accept(one, new_task())
    [leased] = await lease(one)
    [row] = await delivery_rows(one)
    await expire(one, row["session"])
    async with locked(postgres_url, "SELECT id FROM sessions WHERE id = $1", row["session"]):
        # Whoever is at it is not dead yet, and what he has is not free.
        async with asyncio.timeout(30):
            assert await other.reap() == 0
            await accept(other, new_task(origin="https://other.example.com"))
        assert [row["id"] for row in await delivery_rows(other, state="leased")] == [leased.id]
    assert await other.reap() == 1
    assert await reconciled(other) == {"accepted": 2, "pending": 2}
