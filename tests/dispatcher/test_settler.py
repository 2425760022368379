"""Attempts are settled together, and what goes wrong with one of them is its own matter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from msgspec.structs import replace

from dispatcher import retry
from dispatcher.delivery.settler import Settler
from dispatcher.errors import LeaseLost
from dispatcher.models import DeliveryState, Outcome
from dispatcher.store import Store
from dispatcher.store.records import AttemptRecord, LeasedDelivery, Report, Settled
from tests.support.stores import Home, accept, delivery_rows, lease, new_task, open_store


@pytest.fixture
async def store(home: Home) -> AsyncIterator[Store]:
    async with open_store(home) as store:
        yield store


def report(delivery: LeasedDelivery) -> Report:
    return Report(
        delivery_id=delivery.id,
        attempt=delivery.attempt,
        answer=retry.Answer(outcome=Outcome.SUCCESS, status=200),
        record=AttemptRecord(outcome=Outcome.SUCCESS, status=200, started=1.0, ended=1.1),
        schedule=(),
        jitter=0.0,
    )


class Told:
    """What a settler told."""

    def __init__(self, store: Store, most: int = 100) -> None:
        self.answers: dict[str, Settled | None] = {}
        self.settler = Settler(store, most=lambda: most, on_settled=self.note)

    def note(self, told: Report, settled: Settled | None) -> None:
        assert told.delivery_id not in self.answers
        self.answers[told.delivery_id] = settled

    def add(self, *reports: Report) -> None:
        self.settler.add(reports)


async def leased(store: Store, count: int) -> list[LeasedDelivery]:
    await accept(store, *(new_task() for _ in range(count)))
    return await lease(store, limit=count)


@pytest.mark.parametrize("most", [1, 2, 100])
async def test_all_are_recorded_and_told_of(store: Store, most: int) -> None:
    told = Told(store, most)
    deliveries = await leased(store, 5)
    told.add(*map(report, deliveries))
    await told.settler.join()
    states = {id_: settled and settled.state for id_, settled in told.answers.items()}
    assert states == {delivery.id: DeliveryState.DELIVERED for delivery in deliveries}
    assert {row["state"] for row in await delivery_rows(store)} == {DeliveryState.DELIVERED}


async def test_a_lost_lease_is_told_of_among_the_others(store: Store) -> None:
    told = Told(store)
    first, second = await leased(store, 2)
    told.add(replace(report(first), attempt=7), report(second))
    await told.settler.join()
    assert told.answers[first.id] is None
    assert told.answers[second.id] is not None


async def test_one_that_cannot_be_recorded_keeps_no_other(store: Store) -> None:
    told = Told(store)
    first, second = await leased(store, 2)
    broken = replace(report(first), jitter="no number", schedule=(1.0,), answer=retry.Answer(outcome=Outcome.TIMEOUT))
    told.add(broken, report(second))
    await told.settler.join()
    assert told.answers[first.id] is None
    assert told.answers[second.id] is not None
    rows = {row["id"]: row["state"] for row in await delivery_rows(store)}
    assert rows == {first.id: DeliveryState.LEASED, second.id: DeliveryState.DELIVERED}


async def test_what_is_left_at_the_end_is_recorded(store: Store) -> None:
    told = Told(store, most=1)
    deliveries = await leased(store, 3)
    told.add(*map(report, deliveries))
    await asyncio.sleep(0)
    await told.settler.stop()
    await store.interrupt([delivery.id for delivery in deliveries])
    assert {row["state"] for row in await delivery_rows(store)} == {DeliveryState.DELIVERED}


async def test_one_at_fault_at_the_end_keeps_no_other(store: Store) -> None:
    told = Told(store)
    first, *others = await leased(store, 4)
    broken = replace(report(first), jitter="no number", schedule=(1.0,), answer=retry.Answer(outcome=Outcome.TIMEOUT))
    told.add(broken, *map(report, others))
    await told.settler.stop()
    rows = {row["id"]: row["state"] for row in await delivery_rows(store)}
    assert rows == {first.id: DeliveryState.LEASED} | {one.id: DeliveryState.DELIVERED for one in others}


async def test_a_long_row_is_not_settled_in_small_parts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it grows for as long as there are callers."""
    told, sizes, settle = Told(store, most=1), list[int](), store.settle

    async def watched(reports: Sequence[Report]) -> list[Settled | LeaseLost]:
        sizes.append(len(reports))
        return await settle(reports)

    monkeypatch.setattr(store, "settle", watched)
    told.add(*map(report, await leased(store, 10)))
    await told.settler.join()
    assert sizes == [5, 2, 1, 1, 1]
