"""Every statement that moves a task after it was accepted: lease, renew, finish, reap, expire.

A lease raises `attempt`, which is its fencing token. Leases of our own processes hang on their session,
those of processors elsewhere on a time.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from dispatcher.errors import LeaseLost
from dispatcher.models import BodyMode, DeliveryState, TaskState, lane_of
from dispatcher.retry import suspicion_delay
from dispatcher.store import deliveries as delivery_store
from dispatcher.store.committer import Transaction
from dispatcher.store.records import LeasedTask, TaskClaim, TaskReport, TaskSettled
from dispatcher.store.sessions import is_over
from dispatcher.store.tables import bodies, deliveries, is_processing, is_queued, tasks


async def lease(tx: Transaction, claims: Sequence[TaskClaim]) -> list[list[LeasedTask]]:
    """Lease due tasks of the wanted types, oldest first. Tasks whose window has ended are expired instead."""
    leased = []
    for claim in claims:
        found, expired = await _lease_some(tx, claim)
        while expired and not found:
            # Those whose window had ended stood in front of others.
            found, expired = await _lease_some(tx, claim)
        leased.append(found)
    return leased


async def _lease_some(tx: Transaction, claim: TaskClaim) -> tuple[list[LeasedTask], int]:
    """The tasks that were leased, and how many were expired instead."""
    ids = list(await tx.connection.scalars(_due(claim, tx.now)))
    if not ids:
        return [], 0
    rows = await tx.connection.execute(
        sa.select(tasks, bodies.c.content)
        .select_from(tasks.join(bodies, bodies.c.id == tasks.c.id))
        .where(tasks.c.id.in_(ids))
        .order_by(tasks.c.due_at, tasks.c.id)
    )
    found = rows.mappings().all()
    over = [row["id"] for row in found if row["window_end"] is not None and row["window_end"] <= tx.now]
    await expire(tx, over)
    usable = [row for row in found if row["id"] not in over]
    until = {
        row["id"]: None if claim.lease_for is None else tx.now + round(claim.lease_for[row["type"]] * 1000)
        for row in usable
    }
    if usable:
        await tx.connection.execute(
            sa.update(tasks)
            .where(tasks.c.id == sa.bindparam("key"))
            .values(
                state=TaskState.PROCESSING,
                attempt=tasks.c.attempt + 1,
                due_at=None,
                session=tx.session if claim.lease_for is None else None,
                lease_until=sa.bindparam("until"),
            ),
            [{"key": key, "until": end} for key, end in until.items()],
        )
    return [_leased(row, until[row["id"]]) for row in usable], len(over)


def _due(claim: TaskClaim, now: int) -> sa.Select[Any]:
    """Ids of due tasks: one index range per type, so that a long queue costs no more than a short one."""
    arms = []
    for name in claim.types:
        mine = sa.true() if claim.account is None else tasks.c.account == claim.account
        arm = (
            sa.select(tasks.c.id, tasks.c.due_at)
            .where(is_queued, tasks.c.type == name, tasks.c.due_at <= now, mine)
            .order_by(tasks.c.due_at)
            .limit(claim.limit)
            .with_for_update(skip_locked=True)
        )
        arms.append(sa.select(arm.subquery()))
    due = sa.union_all(*arms).subquery()
    return sa.select(due.c.id).order_by(due.c.due_at).limit(claim.limit)


def _leased(row: sa.RowMapping, until: int | None) -> LeasedTask:
    return LeasedTask(
        id=row["id"],
        account=row["account"],
        type=row["type"],
        payload=row["content"],
        attempt=row["attempt"] + 1,
        failures=row["failures"],
        interruptions=row["interruptions"],
        body_mode=BodyMode(row["body_mode"]),
        delivery_id=row["delivery_id"],
        metadata=row["metadata"],
        created_at=row["created_at"],
        window_end=row["window_end"],
        lease_until=until,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Renewal:
    """A wish to keep a remote lease, `seconds` from now."""

    task_id: str
    attempt: int
    account: str | None
    seconds: float


async def renew(tx: Transaction, renewals: Sequence[Renewal]) -> list[int | LeaseLost]:
    """Prolong leases of processors elsewhere; answers the new end, milliseconds since the epoch."""
    results: list[int | LeaseLost] = []
    for renewal in renewals:
        until = tx.now + round(renewal.seconds * 1000)
        result = await tx.connection.execute(
            sa.update(tasks)
            .where(
                tasks.c.id == renewal.task_id,
                tasks.c.attempt == renewal.attempt,
                tasks.c.state == TaskState.PROCESSING,
                tasks.c.lease_until > tx.now,
                sa.true() if renewal.account is None else tasks.c.account == renewal.account,
            )
            .values(lease_until=until)
        )
        results.append(until if result.rowcount else LeaseLost("the lease of this task is no longer held"))
    return results


async def finish(tx: Transaction, reports: Sequence[TaskReport]) -> list[TaskSettled | LeaseLost]:
    """Store results, and make their deliveries due; or queue tasks for another try.

    The result is committed here, before its delivery's first attempt.
    """
    found = await tx.connection.execute(
        sa.select(tasks)
        .where(tasks.c.id.in_([report.task_id for report in reports]), tasks.c.state == TaskState.PROCESSING)
        .with_for_update()
    )
    rows = {row["id"]: row for row in found.mappings()}
    results: list[TaskSettled | LeaseLost] = []
    for report in reports:
        row = rows.pop(report.task_id, None)
        if row is None or not _holds(report, row, tx):
            results.append(LeaseLost("the lease of this task is no longer held"))
        elif report.state is None or report.body is None:
            await _requeue(tx, row["id"], report.retry_in or 0.0, failures=row["failures"] + 1, interruptions=0)
            results.append(TaskSettled(state=TaskState.QUEUED))
        else:
            await _store_result(tx, report, row)
            tx.news.lanes.add(lane_of(row["account"], row["callback_origin"]))
            results.append(TaskSettled(state=report.state))
    return results


def _holds(report: TaskReport, row: sa.RowMapping, tx: Transaction) -> bool:
    if row["attempt"] != report.attempt or report.account not in {None, row["account"]}:
        return False
    if report.remote:
        return row["lease_until"] is not None and row["lease_until"] > tx.now
    return bool(row["session"] == tx.session)


async def _requeue(tx: Transaction, task_id: str, delay: float, *, failures: int, interruptions: int) -> None:
    await tx.connection.execute(
        sa.update(tasks)
        .where(tasks.c.id == task_id)
        .values(
            state=TaskState.QUEUED,
            failures=failures,
            interruptions=interruptions,
            due_at=tx.now + round(delay * 1000),
            session=None,
            lease_until=None,
        )
    )
    tx.news.tasks |= not delay


async def _store_result(tx: Transaction, report: TaskReport, row: sa.RowMapping) -> None:
    body = report.body
    if body is None:
        raise ValueError("a result needs a body")
    await tx.connection.execute(
        sa.insert(bodies).values(
            id=row["delivery_id"],
            content=body.body,
            content_type=body.content_type,
            headers=[list(header) for header in body.headers] or None,
        )
    )
    await tx.connection.execute(
        sa.update(tasks)
        .where(tasks.c.id == row["id"])
        .values(state=report.state, error=report.error, session=None, lease_until=None, finished_at=tx.now)
    )
    await tx.connection.execute(
        sa.update(deliveries)
        .where(deliveries.c.id == row["delivery_id"], deliveries.c.state == DeliveryState.PENDING)
        .values(body_id=row["delivery_id"], due_at=tx.now)
    )


async def reap(tx: Transaction, limit: int) -> int:
    """Queue tasks that dead sessions, or remote processors past their lease, left in work. Answers how many."""
    over = sa.or_(is_over(tasks.c.session), tasks.c.lease_until <= tx.now)
    rows = await tx.connection.execute(
        sa.select(tasks.c.id, tasks.c.failures, tasks.c.interruptions)
        .where(is_processing, over)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    left = rows.all()
    for row in left:
        interruptions = row.interruptions + 1
        delay = suspicion_delay(interruptions, jitter=random.uniform(-1, 1))  # noqa: S311 - spreads retries
        await _requeue(tx, row.id, delay, failures=row.failures, interruptions=interruptions)
    return len(left)


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskRelease:
    """A task given back before its processor began."""

    task_id: str
    attempt: int


async def release(tx: Transaction, releases: Sequence[TaskRelease]) -> list[None]:
    """Queue tasks again as if they had never been leased."""
    await tx.connection.execute(
        sa.update(tasks)
        .where(
            tasks.c.id == sa.bindparam("key"),
            tasks.c.attempt == sa.bindparam("token"),
            tasks.c.state == TaskState.PROCESSING,
            tasks.c.session == tx.session,
        )
        .values(state=TaskState.QUEUED, attempt=tasks.c.attempt - 1, due_at=tx.now, session=None),
        [{"key": release.task_id, "token": release.attempt} for release in releases],
    )
    tx.news.tasks = True
    return [None for _ in releases]


async def expire(tx: Transaction, task_ids: Sequence[str]) -> None:
    """End tasks without a result, and their deliveries, because the callback's window is over."""
    await end_without_result(tx, task_ids, TaskState.EXPIRED, DeliveryState.EXPIRED, "window")
    await delivery_store.wipe(tx, set(task_ids))


async def end_without_result(
    tx: Transaction,
    task_ids: Sequence[str],
    task_state: TaskState,
    delivery_state: DeliveryState,
    reason: str,
) -> None:
    """End tasks that have no result yet, together with the deliveries that waited for it."""
    if not task_ids:
        return
    await tx.connection.execute(
        sa.update(tasks)
        .where(tasks.c.id.in_(task_ids))
        .values(state=task_state, due_at=None, session=None, lease_until=None, finished_at=tx.now)
    )
    ended = await tx.connection.execute(
        sa.update(deliveries)
        .where(deliveries.c.source_id.in_(task_ids), deliveries.c.state == DeliveryState.PENDING)
        .values(state=delivery_state, reason=reason, due_at=None, finished_at=tx.now)
        .returning(deliveries.c.account)
    )
    tx.counts.update((account, delivery_state) for account in ended.scalars())
