"""What a caller may change after a task was accepted: cancel it, give it another callback.

While a worker holds the delivery's lease, the row is only marked: a running request that ends 2xx still counts,
anything else applies the mark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from dispatcher.errors import Problem
from dispatcher.ids import new_id
from dispatcher.models import TERMINAL_STATES, DeliveryState, Mark, TaskState, lane_of
from dispatcher.store import deliveries as delivery_store
from dispatcher.store import work
from dispatcher.store.committer import Transaction
from dispatcher.store.records import Callback
from dispatcher.store.sealing import seal_callback
from dispatcher.store.tables import deliveries, tasks
from subscriptions.keyring import Keyring


@dataclass(frozen=True, kw_only=True, slots=True)
class Cancellation:
    """A wish to withdraw a task."""

    account: str
    task_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class NewCallback:
    """A callback that replaces a task's present one."""

    account: str
    task_id: str
    callback: Callback
    keyring: Keyring


async def cancel(tx: Transaction, wishes: Sequence[Cancellation]) -> list[Problem | None]:
    """Withdraw tasks. A delivery that is under way is marked."""
    return [await _cancel(tx, wish) for wish in wishes]


async def _cancel(tx: Transaction, wish: Cancellation) -> Problem | None:
    task = await _task(tx, wish.account, wish.task_id)
    if task is None:
        return _no_task()
    if task["state"] in {TaskState.QUEUED, TaskState.PROCESSING}:
        await work.end_without_result(tx, [task["id"]], TaskState.CANCELLED, DeliveryState.CANCELLED, "cancelled")
        return None
    delivery = await _latest(tx, task)
    if delivery is None:
        return _no_task()
    if delivery.state == DeliveryState.LEASED:
        await _mark(tx, delivery.id, Mark.CANCEL)
    elif delivery.state in {DeliveryState.PENDING, DeliveryState.HELD}:
        await delivery_store.end(tx, [delivery], DeliveryState.CANCELLED, "cancelled")
    elif delivery.state != DeliveryState.CANCELLED:
        return Problem("conflict", f"The delivery is {delivery.state}; it can no longer be cancelled.")
    return None


async def replace_callback(tx: Transaction, wishes: Sequence[NewCallback]) -> list[Problem | str]:
    """Put new callbacks in place; answers the lane of each task's delivery."""
    return [await _replace_callback(tx, wish) for wish in wishes]


async def _replace_callback(tx: Transaction, wish: NewCallback) -> Problem | str:
    task = await _task(tx, wish.account, wish.task_id)
    if task is None:
        return _no_task()
    if task["state"] in {TaskState.EXPIRED, TaskState.CANCELLED}:
        return Problem("conflict", f"The task is {task['state']} and has no result to deliver.")
    delivery = await _latest(tx, task)
    if delivery is None:
        return _no_task()
    if delivery.mark == Mark.CANCEL:
        return Problem("conflict", "The delivery is being cancelled.")
    lane = lane_of(wish.account, wish.callback.origin)
    columns = seal_callback(wish.keyring, wish.callback, account=wish.account, task_id=wish.task_id)
    await tx.connection.execute(sa.update(tasks).where(tasks.c.id == task["id"]).values(columns))
    if delivery.state == DeliveryState.LEASED:
        await _mark(tx, delivery.id, Mark.RETARGET)
    elif delivery.state in TERMINAL_STATES:
        await delivery_store.insert_redelivery(tx, delivery._mapping, delivery_id=new_id(), lane=lane)
    else:
        due = None
        if delivery.body_id is not None:
            due = tx.now
            tx.news.lanes.add(lane)
        await tx.connection.execute(
            sa.update(deliveries).where(deliveries.c.id == delivery.id).values(lane=lane, due_at=due)
        )
    return lane


async def _task(tx: Transaction, account: str, task_id: str) -> sa.RowMapping | None:
    rows = await tx.connection.execute(
        sa.select(tasks).where(tasks.c.id == task_id, tasks.c.account == account).with_for_update()
    )
    return rows.mappings().one_or_none()


async def _delivery(tx: Transaction, delivery_id: str) -> sa.Row[Any] | None:
    rows = await tx.connection.execute(sa.select(deliveries).where(deliveries.c.id == delivery_id).with_for_update())
    return rows.one_or_none()


async def _latest(tx: Transaction, task: sa.RowMapping) -> sa.Row[Any] | None:
    """A task's latest delivery; None while the task is being deleted, part by part."""
    return await _delivery(tx, task["delivery_id"])


async def _mark(tx: Transaction, delivery_id: str, mark: Mark) -> None:
    tx.leases.forget([delivery_id])
    await tx.connection.execute(sa.update(deliveries).where(deliveries.c.id == delivery_id).values(mark=mark))


def _no_task() -> Problem:
    return Problem("not-found", "There is no such task.")
