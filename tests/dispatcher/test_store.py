"""The store on a real database: leases, fencing, marks, interruption, windows and the ledger."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import sqlalchemy as sa
from msgspec import structs

from dispatcher.bodies import Body
from dispatcher.errors import LeaseLost, Problem
from dispatcher.ids import new_id
from dispatcher.models import DeliveryState, Outcome, TaskState
from dispatcher.retry import POISON_AFTER
from dispatcher.store import Store, queries
from dispatcher.store.accounts import Account, change_account
from dispatcher.store.deliveries import Release
from dispatcher.store.leasing import SHORT
from dispatcher.store.records import (
    Callback,
    IdempotencyKey,
    LaneClaim,
    LeasedDelivery,
    Replayed,
    TaskClaim,
    TaskReport,
)
from dispatcher.store.redelivering import Redelivered
from dispatcher.store.tables import attempts, deliveries, tasks
from dispatcher.store.work import TaskRelease
from subscriptions.secrets import Secret
from tests.support.stores import (
    ACCOUNT,
    LANE,
    URL,
    Home,
    accept,
    heard,
    lease,
    lease_for,
    new_event,
    new_task,
    open_store,
    publish,
    settle,
    subscribe,
)

HOUR_MS = 3_600_000


@pytest.fixture
async def store(home: Home) -> AsyncIterator[Store]:
    async with open_store(home) as store:
        yield store


async def delivery_row(store: Store, delivery_id: str) -> sa.RowMapping:
    async with store.database.read() as connection:
        rows = await connection.execute(sa.select(deliveries).where(deliveries.c.id == delivery_id))
        return rows.mappings().one()


async def lease_soon(store: Store) -> list[LeasedDelivery]:
    """Lease what waits in the lane, however long it still had to wait."""
    async with store.database.write() as connection:
        await connection.execute(sa.update(deliveries).where(deliveries.c.due_at.is_not(None)).values(due_at=0))
    return await lease(store)


async def state_of(store: Store, delivery_id: str) -> str:
    return str((await delivery_row(store, delivery_id))["state"])


async def reconciled(store: Store, account: str = ACCOUNT) -> dict[str, int]:
    """The ledger, checked against the rows themselves."""
    counts = await store.ledger(account)
    assert counts["accepted"] == sum(counts.values()) - counts["accepted"]
    async with store.database.read() as connection:
        rows = await connection.execute(
            sa.select(deliveries.c.state, sa.func.count().label("number"))
            .where(deliveries.c.account == account)
            .group_by(deliveries.c.state)
        )
        by_row = {row.state: row.number for row in rows}
    assert by_row == {state: n for state, n in counts.items() if n and state != "accepted"}
    return {state: n for state, n in counts.items() if n}


async def test_accept_lease_settle(store: Store) -> None:
    task = new_task()
    await accept(store, task)
    [leased] = await lease(store)
    assert (leased.id, leased.attempt, leased.body.body) == (task.delivery_id, 1, b'{"n":1}')
    assert leased.endpoint.url.reveal() == URL
    assert leased.endpoint.headers == (("X-Secret", "a-header-value"),)
    assert await lease(store) == []
    settled = await settle(store, leased)
    assert settled.state is DeliveryState.DELIVERED
    assert await reconciled(store) == {"accepted": 1, "delivered": 1}


async def test_what_was_delivered_is_wiped(store: Store) -> None:
    task = new_task()
    await accept(store, task)
    [leased] = await lease(store)
    await settle(store, leased)
    async with store.database.read() as connection:
        row = (await connection.execute(sa.select(tasks).where(tasks.c.id == task.id))).mappings().one()
    assert (row["callback_url"], row["callback_secret"], row["callback_headers"]) == (None, None, None)


async def test_a_handed_off_task_is_leased_from_the_start(store: Store) -> None:
    await accept(store, new_task(handed_off=True))
    assert await lease(store) == []
    assert await reconciled(store) == {"accepted": 1, "leased": 1}


async def test_lanes_are_leased_side_by_side_up_to_their_limits(store: Store) -> None:
    origins = [f"https://{name}.example.com" for name in "abc"]
    await accept(store, *(new_task(origin=origin) for origin in origins for _ in range(5)))
    claims = [
        LaneClaim(lane=f"{ACCOUNT} {origin}", limit=limit) for origin, limit in zip(origins, (2, 5, 9), strict=True)
    ]
    batch = await store.lease(claims)
    by_lane = {claim.lane: sum(leased.lane == claim.lane for leased in batch.deliveries) for claim in claims}
    assert list(by_lane.values()) == [2, 5, 5]
    assert [batch.next_due[claim.lane] is None for claim in claims] == [False, True, True]


@pytest.mark.parametrize("kind", ["callbacks", "messages"])
async def test_a_long_body_is_leased_whole_beside_short_ones(store: Store, kind: str) -> None:
    sizes = (2, SHORT - 1, SHORT, SHORT + 1, 200_000, 3)
    written = [b"[" + b"7" * (size - 2) + b"]" for size in sizes]
    if kind == "callbacks":
        await accept(store, *(structs.replace(new_task(), body=Body(body, "application/json")) for body in written))
        leased = await lease(store)
    else:
        subscription = await subscribe(store)
        await publish(store, *(new_event(payload=body) for body in written))
        leased = await lease_for(store, subscription)
    assert sorted(one.body.body for one in leased) == sorted(written)


async def test_due_lanes_pass_over_lanes_that_wait_for_results(store: Store) -> None:
    waiting = [f"https://{number:02}.example.com" for number in range(5)]
    await accept(store, *(new_task(origin=origin, task_type="slow") for origin in waiting))
    await accept(store, new_task(origin="https://z.example.com"))
    assert await store.due_lanes(after="", limit=2) == {f"{ACCOUNT} https://z.example.com": 0.0}


async def test_due_lanes_hops_over_what_waits_in_them(store: Store) -> None:
    origins = [f"https://{name}.example.com" for name in "abcd"]
    await accept(store, *(new_task(origin=origin) for origin in origins for _ in range(3)))
    first = await store.due_lanes(after="", limit=3)
    rest = await store.due_lanes(after=max(first), limit=3)
    assert [*first, *rest] == [f"{ACCOUNT} {origin}" for origin in origins]


def moved() -> Callback:
    """Another callback."""
    return Callback(
        url=Secret("https://new.example.com/elsewhere"),
        secret=None,
        headers=(),
        schemes=None,
        origin="https://new.example.com",
        fingerprint="1" * 16,
        token="none",
        window_end=None,
    )


async def test_a_filtered_list_looks_at_so_many_rows_for_a_page(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "SCAN_LIMIT", 4)
    rare = [new_task(task_type="rare"), *(new_task() for _ in range(9)), new_task(task_type="rare")]
    for task in rare:
        await accept(store, task)
    found, sizes, before = [], [], None
    while True:
        page = await queries.list_tasks(store.database, ACCOUNT, limit=2, before=before, type="rare")
        found += [row["id"] for row in page.rows]
        sizes.append(len(page.rows))
        before = page.next_cursor
        if before is None:
            break
    assert found == [rare[-1].id, rare[0].id]
    assert sizes == [1, 0, 1]


async def test_changes_of_an_account_at_the_same_time_are_both_kept(store: Store) -> None:
    def schemes(account: Account) -> Account:
        return replace(account, schemes=("websub",))

    def schedule(account: Account) -> Account:
        return replace(account, retry_schedule=(1.0,))

    await asyncio.gather(
        *(
            change_account(store.database, store.keyring, ACCOUNT, change, actor="test")
            for change in (schemes, schedule)
        )
    )
    account = await store.account(ACCOUNT)
    assert (account.schemes, account.retry_schedule) == (("websub",), (1.0,))


class TestFencing:
    """Only the holder of a lease changes the row."""

    async def test_a_second_report_changes_nothing(self, store: Store) -> None:
        await accept(store, new_task())
        [leased] = await lease(store)
        await settle(store, leased)
        with pytest.raises(LeaseLost):
            await settle(store, leased, Outcome.HTTP_ERROR, 410)
        assert await reconciled(store) == {"accepted": 1, "delivered": 1}

    async def test_a_report_on_an_older_attempt_changes_nothing(self, store: Store) -> None:
        await accept(store, new_task())
        [first] = await lease(store)
        await settle(store, first, Outcome.TIMEOUT, None)
        [second] = await lease(store)
        assert second.attempt == 2
        with pytest.raises(LeaseLost):
            await settle(store, first)
        assert await state_of(store, first.id) == DeliveryState.LEASED

    async def test_another_process_cannot_settle_it(self, store: Store, home: Home) -> None:
        await accept(store, new_task())
        [leased] = await lease(store)
        async with open_store(home, alone=False) as other:
            with pytest.raises(LeaseLost):
                await settle(other, leased)

    async def test_another_process_cannot_interrupt_it(self, store: Store, home: Home) -> None:
        await accept(store, new_task())
        [leased] = await lease(store)
        async with open_store(home, alone=False) as other:
            assert await other.interrupt([leased.id]) == 0
        assert (await settle(store, leased)).state is DeliveryState.DELIVERED


class TestInterruption:
    """A lease that ended without a report is recorded, and the delivery goes on."""

    async def test_what_a_dead_process_left_is_free_at_once(self, home: Home) -> None:
        task = new_task(handed_off=True)
        async with open_store(home) as dead:
            await accept(dead, task)
            async with open_store(home, alone=True) as store:
                assert await store.reap() == 1
                [leased] = await lease(store)
                assert leased.attempt == 2
                assert await reconciled(store) == {"accepted": 1, "leased": 1}
                found = await queries.delivery(store.database, ACCOUNT, task.delivery_id)
                assert found is not None
                assert [(row["number"], row["outcome"]) for row in found[1]] == [(1, "interrupted")]

    async def test_a_living_process_keeps_its_leases(self, store: Store, home: Home) -> None:
        await accept(store, new_task(handed_off=True))
        async with open_store(home, alone=False) as other:
            assert await other.reap() == 0
        assert await reconciled(store) == {"accepted": 1, "leased": 1}

    async def test_who_was_cut_off_takes_nobody_for_dead_at_once(self, home: Home) -> None:
        """Where the database was away for all, whoever is back first does not end the sessions of the others."""
        async with (
            open_store(home, session_ttl=0.5) as store,
            open_store(home, alone=False, session_ttl=0.5) as other,
        ):
            await accept(store, new_task())
            [leased] = await lease(store)
            await asyncio.sleep(0.6)
            assert await other.heartbeat()
            assert await other.reap() == 0
            assert await store.heartbeat()
            assert (await settle(store, leased)).state is DeliveryState.DELIVERED

    async def test_who_is_late_alone_is_taken_for_dead(self, home: Home) -> None:
        async with open_store(home, session_ttl=0.5) as store, open_store(home, alone=False) as other:
            await accept(store, new_task(handed_off=True))
            await asyncio.sleep(0.6)
            assert await other.heartbeat()
            assert await other.reap() == 1
            assert not await store.heartbeat()

    async def test_ten_in_a_row_end_it(self, store: Store) -> None:
        await accept(store, new_task())
        for attempt in range(1, POISON_AFTER + 1):
            [leased] = await lease_soon(store)
            assert leased.attempt == attempt
            await store.interrupt([leased.id])
        assert await lease(store) == []
        row = await delivery_row(store, leased.id)
        assert (row["state"], row["reason"]) == (DeliveryState.EXHAUSTED, "poison")
        assert await reconciled(store) == {"accepted": 1, "exhausted": 1}

    async def test_an_answer_in_between_begins_the_count_anew(self, store: Store) -> None:
        await accept(store, new_task())
        for number in range(2 * POISON_AFTER - 1):
            [leased] = await lease_soon(store)
            if number == POISON_AFTER - 1:
                await settle(store, leased, Outcome.HTTP_ERROR, 500)
            else:
                await store.interrupt([leased.id])
        assert await state_of(store, leased.id) == DeliveryState.PENDING

    async def test_a_suspect_waits_apart_longer_each_time(self, store: Store) -> None:
        await accept(store, new_task())
        waits = []
        for _ in range(POISON_AFTER - 1):
            [leased] = await lease_soon(store)
            await store.interrupt([leased.id])
            waits.append((await store.due_lanes(after="", limit=1))[LANE])
        assert waits[:2] == [0.0, 0.0]
        assert all(0.5 < wait < 210 for wait in waits[2:])
        assert waits[-1] > waits[2]

    async def test_more_leases_than_one_statement_can_name_are_freed(self, home: Home) -> None:
        async with open_store(home) as dead:
            await accept(dead, *(new_task(handed_off=True) for _ in range(500)))
            async with open_store(home, alone=True) as store:
                freed = 0
                while step := await store.reap():
                    freed += step
                assert freed == 500
                assert await reconciled(store) == {"accepted": 500, "pending": 500}

    async def test_unknown_leases_are_told(self, store: Store) -> None:
        task, other = new_task(handed_off=True), new_task(handed_off=True)
        await accept(store, task, other)
        assert await store.unknown_leases(frozenset([other.delivery_id])) == {task.delivery_id}


class TestRelease:
    """A lease given back before anything was sent is as if it had never been."""

    async def test_the_attempt_number_is_free_again(self, store: Store) -> None:
        await accept(store, new_task())
        [leased] = await lease(store)
        await store.release(Release(delivery_id=leased.id, attempt=1))
        [again] = await lease(store)
        assert again.attempt == 1
        await settle(store, again)
        assert await reconciled(store) == {"accepted": 1, "delivered": 1}

    async def test_it_can_be_put_off(self, store: Store) -> None:
        await accept(store, new_task())
        [leased] = await lease(store)
        await store.release(Release(delivery_id=leased.id, attempt=1, delay=60))
        assert await lease(store) == []
        assert 30 < (await store.due_lanes(after="", limit=1))[LANE] <= 60

    async def test_a_new_callback_owes_the_old_ones_pause_nothing(self, store: Store) -> None:
        task = new_task()
        await accept(store, task)
        [leased] = await lease(store)
        lane = await store.replace_callback(ACCOUNT, task.id, moved())
        released = await store.release(Release(delivery_id=leased.id, attempt=1, delay=80_000))
        assert released is not None
        assert (released.lane, released.delay) == (lane, 0.0)
        assert len(await lease(store, lane=lane)) == 1

    async def test_a_mark_to_cancel_is_applied(self, store: Store) -> None:
        task = new_task()
        await accept(store, task)
        [leased] = await lease(store)
        await store.cancel_task(ACCOUNT, task.id)
        await store.release(Release(delivery_id=leased.id, attempt=1))
        assert await reconciled(store) == {"accepted": 1, "cancelled": 1}


class TestChanges:
    """What a caller asks while a request may be running."""

    @pytest.mark.parametrize(
        ("outcome", "status", "state"),
        [(Outcome.SUCCESS, 200, DeliveryState.DELIVERED), (Outcome.HTTP_ERROR, 500, DeliveryState.CANCELLED)],
    )
    async def test_cancel_during_a_lease(
        self, store: Store, outcome: Outcome, status: int, state: DeliveryState
    ) -> None:
        task = new_task()
        await accept(store, task)
        [leased] = await lease(store)
        await store.cancel_task(ACCOUNT, task.id)
        assert await state_of(store, leased.id) == DeliveryState.LEASED
        assert (await settle(store, leased, outcome, status)).state is state
        await reconciled(store)

    async def test_cancel_while_it_waits_is_final(self, store: Store) -> None:
        task = new_task()
        await accept(store, task)
        await store.cancel_task(ACCOUNT, task.id)
        assert await lease(store) == []
        assert await reconciled(store) == {"accepted": 1, "cancelled": 1}
        await store.cancel_task(ACCOUNT, task.id)
        assert await reconciled(store) == {"accepted": 1, "cancelled": 1}

    async def test_what_is_delivered_cannot_be_cancelled(self, store: Store) -> None:
        task = new_task()
        await accept(store, task)
        [leased] = await lease(store)
        await settle(store, leased)
        with pytest.raises(Problem, match="no longer be cancelled"):
            await store.cancel_task(ACCOUNT, task.id)

    async def test_another_accounts_task_is_not_found(self, store: Store) -> None:
        task = new_task()
        await accept(store, task)
        with pytest.raises(Problem, match="no such task"):
            await store.cancel_task("another", task.id)

    async def test_a_new_callback_during_a_lease_is_tried_at_once(self, store: Store) -> None:
        task = new_task()
        await accept(store, task)
        [leased] = await lease(store)
        lane = await store.replace_callback(ACCOUNT, task.id, moved())
        settled = await settle(store, leased, Outcome.HTTP_ERROR, 410)
        assert (settled.state, settled.delay, settled.lane) == (DeliveryState.PENDING, 0.0, lane)
        [again] = await lease(store, lane=lane)
        assert (again.attempt, again.endpoint.url.reveal()) == (2, "https://new.example.com/elsewhere")

    async def test_a_new_callback_after_the_end_makes_a_new_delivery(self, store: Store) -> None:
        task = new_task()
        await accept(store, task)
        [leased] = await lease(store)
        await settle(store, leased)
        lane = await store.replace_callback(ACCOUNT, task.id, moved())
        [again] = await lease(store, lane=lane)
        assert again.id != leased.id
        assert (again.wire_id, again.attempt, again.body) == (leased.wire_id, 1, leased.body)
        assert (await delivery_row(store, again.id))["redelivery_of"] == leased.id
        await settle(store, again)
        assert await reconciled(store) == {"accepted": 2, "delivered": 2}

    async def test_a_wiped_callback_cannot_be_used_again(self, store: Store) -> None:
        await accept(store, new_task())
        [leased] = await lease(store)
        await settle(store, leased)
        with pytest.raises(Problem) as caught:
            await store.redeliver(ACCOUNT, leased.id, None)
        assert caught.value.slug == "callback-wiped"

    async def test_a_rejected_delivery_is_sent_again_once_at_a_time(self, store: Store) -> None:
        await accept(store, new_task())
        [leased] = await lease(store)
        await settle(store, leased, Outcome.HTTP_ERROR, 404)
        key = IdempotencyKey(account=ACCOUNT, route="POST redeliver", key="k", fingerprint=b"0" * 32)
        made = await store.redeliver(ACCOUNT, leased.id, key)
        assert isinstance(made, Redelivered)
        assert await store.redeliver(ACCOUNT, leased.id, key) == Replayed(answer=made.delivery_id.encode())
        with pytest.raises(Problem, match="still under way"):
            await store.redeliver(ACCOUNT, leased.id, None)
        [again] = await lease(store)
        assert (again.id, again.wire_id) == (made.delivery_id, leased.wire_id)


class TestWindows:
    """Nothing is sent past the end of a callback's window, and the URL goes with it."""

    async def test_a_delivery_past_its_window_is_expired_not_leased(self, store: Store) -> None:
        await accept(store, new_task(window_end=int(time.time() * 1000) - 1))
        assert await lease(store) == []
        assert await reconciled(store) == {"accepted": 1, "expired": 1}

    async def test_the_sweep_expires_what_waits_and_wipes_the_url(self, store: Store) -> None:
        waiting = new_task(window_end=int(time.time() * 1000) - 1, task_type="slow")
        due_later = new_task(window_end=int(time.time() * 1000) - 1)
        open_still = new_task(window_end=int(time.time() * 1000) + HOUR_MS)
        await accept(store, waiting, due_later, open_still)
        assert await store.end_windows() == 2
        assert await store.end_windows() == 0
        async with store.database.read() as connection:
            rows = await connection.execute(sa.select(tasks.c.id, tasks.c.state, tasks.c.callback_url))
            found = {row.id: (row.state, row.callback_url is None) for row in rows}
        assert found[waiting.id] == (TaskState.EXPIRED, True)
        assert found[due_later.id] == (TaskState.SUCCEEDED, True)
        assert found[open_still.id] == (TaskState.SUCCEEDED, False)
        assert await reconciled(store) == {"accepted": 3, "expired": 2, "pending": 1}


class TestWork:
    """Tasks that have a processor."""

    async def test_a_result_is_stored_before_its_delivery_can_be_leased(self, store: Store) -> None:
        task = new_task(task_type="slow")
        await accept(store, task)
        assert await lease(store) == []
        [leased] = await store.lease_tasks(TaskClaim(types=("slow",), limit=5))
        assert (leased.id, leased.payload, leased.attempt) == (task.id, b'{"n":1}', 1)
        report = TaskReport(
            task_id=task.id, attempt=1, state=TaskState.SUCCEEDED, body=Body(b'{"sum":3}', "application/json")
        )
        with heard(store) as news:
            settled = await store.finish_task(report)
        assert (settled.state, news.lanes) == (TaskState.SUCCEEDED, {LANE})
        with pytest.raises(LeaseLost):
            await store.finish_task(report)
        [delivery] = await lease(store)
        assert delivery.body.body == b'{"sum":3}'

    async def test_a_try_that_failed_is_queued_again_with_a_new_token(self, store: Store) -> None:
        task = new_task(task_type="slow")
        await accept(store, task)
        [first] = await store.lease_tasks(TaskClaim(types=("slow",), limit=1))
        await store.finish_task(TaskReport(task_id=task.id, attempt=first.attempt, retry_in=0.0))
        assert await queries.next_task_due(store.database, ("slow", "other")) == 0.0
        [second] = await store.lease_tasks(TaskClaim(types=("slow",), limit=1))
        assert await queries.next_task_due(store.database, ("slow", "other")) is None
        assert (second.attempt, second.failures) == (2, 1)

    async def test_a_task_given_back_was_never_leased(self, store: Store) -> None:
        task = new_task(task_type="slow")
        await accept(store, task)
        [leased] = await store.lease_tasks(TaskClaim(types=("slow",), limit=1))
        await store.release_task(TaskRelease(task_id=leased.id, attempt=leased.attempt))
        [again] = await store.lease_tasks(TaskClaim(types=("slow",), limit=1))
        assert (again.attempt, again.failures) == (1, 0)

    async def test_cancelling_a_task_at_work_ends_it_and_its_delivery(self, store: Store) -> None:
        task = new_task(task_type="slow")
        await accept(store, task)
        await store.lease_tasks(TaskClaim(types=("slow",), limit=1))
        await store.cancel_task(ACCOUNT, task.id)
        with pytest.raises(LeaseLost):
            await store.finish_task(
                TaskReport(task_id=task.id, attempt=1, state=TaskState.SUCCEEDED, body=Body(b"1", "application/json"))
            )
        assert await reconciled(store) == {"accepted": 1, "cancelled": 1}

    async def test_a_remote_lease_ends_by_itself(self, store: Store) -> None:
        task = new_task(task_type="far")
        await accept(store, task)
        claim = TaskClaim(types=("far",), limit=1, account=ACCOUNT, lease_for={"far": 0.0})
        [leased] = await store.lease_tasks(claim)
        with pytest.raises(LeaseLost):
            await store.finish_task(
                TaskReport(task_id=task.id, attempt=leased.attempt, account=ACCOUNT, remote=True, retry_in=0.0)
            )
        assert await store.reap() == 1
        [again] = await store.lease_tasks(claim)
        assert (again.attempt, again.failures, again.interruptions) == (2, 0, 1)

    async def test_expired_tasks_do_not_stand_in_the_way(self, store: Store) -> None:
        over = int(time.time() * 1000) - 1
        await accept(store, *(new_task(task_type="slow", window_end=over) for _ in range(10)))
        live = new_task(task_type="slow")
        await accept(store, live)
        assert [task.id for task in await store.lease_tasks(TaskClaim(types=("slow",), limit=3))] == [live.id]
        assert await reconciled(store) == {"accepted": 11, "expired": 10, "pending": 1}

    async def test_another_accounts_tasks_are_not_leased(self, store: Store) -> None:
        await accept(store, new_task(task_type="far"))
        claim = TaskClaim(types=("far",), limit=1, account="another", lease_for={"far": 60.0})
        assert await store.lease_tasks(claim) == []


async def test_equal_keys_in_one_batch_are_one_request(store: Store) -> None:
    async def request(fingerprint: bytes) -> Replayed | None:
        key = IdempotencyKey(account=ACCOUNT, route="POST /tasks", key="k", fingerprint=fingerprint)
        return await accept(store, new_task(), key=key, answer=new_id().encode())

    answers = await asyncio.gather(*(request(b"a" * 32) for _ in range(20)), return_exceptions=True)
    assert answers.count(None) == 1
    assert len({answer.answer for answer in answers if isinstance(answer, Replayed)}) == 1
    with pytest.raises(Problem) as caught:
        await request(b"b" * 32)
    assert caught.value.slug == "idempotency-mismatch"
    assert await reconciled(store) == {"accepted": 1, "pending": 1}


async def test_a_request_of_many_tasks_is_stored_whole_or_not_at_all(store: Store) -> None:
    twin = new_task()
    with pytest.raises(Exception, match=r"(?i)unique"):
        await accept(store, new_task(), twin, twin)
    assert await reconciled(store) == {}
    assert await store.due_lanes(after="", limit=5) == {}


async def test_attempts_are_kept_in_order(store: Store) -> None:
    await accept(store, new_task())
    for outcome, status in ((Outcome.TIMEOUT, None), (Outcome.HTTP_ERROR, 503), (Outcome.SUCCESS, 204)):
        [leased] = await lease(store)
        await settle(store, leased, outcome, status)
    async with store.database.read() as connection:
        rows = await connection.execute(sa.select(attempts).order_by(attempts.c.number))
        assert [(row.number, row.outcome, row.status) for row in rows] == [
            (1, "timeout", None),
            (2, "http_error", 503),
            (3, "success", 204),
        ]
