"""What time does to rows: dead sessions, ended windows, old answers, at last deletion. Small batches only."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from dispatcher.ids import id_floor
from dispatcher.models import DeliveryState, TaskState
from dispatcher.store import deliveries as delivery_store
from dispatcher.store import partitions, settling, work
from dispatcher.store.clock import not_before
from dispatcher.store.committer import Transaction
from dispatcher.store.idempotency import KEPT_MS
from dispatcher.store.sessions import end_late_sessions
from dispatcher.store.tables import (
    attempts,
    bodies,
    deliveries,
    events,
    idempotency,
    is_live,
    paces,
    redeliveries,
    subscriptions,
    tasks,
)
from subscriptions.schema import is_deleted

#: rows that one step handles, so that nobody waits long behind it
BATCH = 200
#: deliveries that one step deletes
PART = 1_000


async def reap(tx: Transaction, lenient: Sequence[bool]) -> list[int]:
    """Free the leases of dead sessions and of late remote processors, one batch. Answers how many there were.

    Who is lenient ends no session itself.
    """
    if not all(lenient):
        # Whoever died may also have known of work in memory that hangs on no lease.
        tx.news.more |= bool(await end_late_sessions(tx.connection, tx.now, but=tx.session))
    freed = await work.reap(tx, BATCH) + await settling.reap(tx, BATCH)
    return [freed, *(0 for _ in lenient[1:])]


async def end_windows(tx: Transaction, items: Sequence[None]) -> list[int]:
    """Expire what waits for a callback whose window is over, and wipe the URL. Answers how many."""
    rows = await tx.connection.execute(
        sa.select(tasks.c.id, tasks.c.state)
        .where(tasks.c.callback_url.is_not(None), tasks.c.window_end <= tx.now)
        .limit(BATCH)
        # Whoever has it just now may be finishing it.
        .with_for_update(skip_locked=True)
    )
    over = rows.all()
    unfinished = [row.id for row in over if row.state in {TaskState.QUEUED, TaskState.PROCESSING}]
    finished = [row.id for row in over if row.state not in {TaskState.QUEUED, TaskState.PROCESSING}]
    await work.expire(tx, unfinished)
    if finished:
        ended = await tx.connection.execute(
            sa.update(deliveries)
            .where(deliveries.c.source_id.in_(finished), deliveries.c.state == DeliveryState.PENDING)
            .values(state=DeliveryState.EXPIRED, reason="window", due_at=None, finished_at=tx.now)
            .returning(deliveries.c.account)
        )
        tx.counts.update((account, DeliveryState.EXPIRED) for account in ended.scalars())
        # A lease that is under way has its own copy in memory; settling it wipes nothing that is left here.
        await delivery_store.wipe(tx, set(finished))
    return [len(over), *(0 for _ in items[1:])]


async def delete_old(tx: Transaction, ages_ms: Sequence[int]) -> list[int]:
    """Delete what ended longer ago than an age, with all that belongs to it. Answers how many.

    A task or an event stays while one of its deliveries can still move, and while an idempotency key may answer
    with it. Of a deleted subscription the row stays while a delivery names it. Bodies and attempts that stand in
    partitions go with those (`partitions.keep`).
    """
    return [await _delete_old(tx, max(age, KEPT_MS)) for age in ages_ms]


async def _delete_old(tx: Transaction, age_ms: int) -> int:
    cutoff = not_before(tx.now) - age_ms
    deleted = [await _delete_sources(tx, table, cutoff) for table in (tasks, events)]
    return sum(deleted) + await _delete_subscriptions(tx, cutoff) + await _delete_redeliveries(tx, cutoff)


async def _delete_sources(tx: Transaction, table: sa.Table, cutoff: int) -> int:
    live = sa.exists().where(deliveries.c.source_id == table.c.id, is_live)
    recent = sa.exists().where(deliveries.c.source_id == table.c.id, deliveries.c.finished_at >= cutoff)
    ids = list(
        await tx.connection.scalars(
            sa.select(table.c.id)
            # Ids sort by creation, so the primary key finds the old ones.
            .where(table.c.id < id_floor(cutoff), table.c.finished_at < cutoff, ~live, ~recent)
            .order_by(table.c.id)
            .limit(BATCH)
            .with_for_update(of=table, skip_locked=True)
        )
    )
    # Now that nobody can send one again, what was sent again before is seen, too.
    kept = await tx.connection.scalars(
        sa.select(deliveries.c.source_id).where(
            deliveries.c.source_id.in_(ids), sa.or_(is_live, deliveries.c.finished_at >= cutoff)
        )
    )
    ids = sorted(set(ids) - set(kept))
    if not ids:
        return 0
    # An event may have very many deliveries: they go first, a part at a time, and it goes when none is left.
    query = sa.select(deliveries.c.id).where(deliveries.c.source_id.in_(ids)).limit(PART)
    if table is tasks:
        # A task's first delivery holds the bytes of all: while another is there to be sent again, it is there.
        query = query.order_by(deliveries.c.redelivery_of.is_(None))
    theirs = list(await tx.connection.scalars(query))
    dialect = tx.connection.dialect.name
    tries, content = partitions.rest(attempts, dialect), partitions.rest(bodies, dialect)
    await tx.connection.execute(sa.delete(tries).where(tries.c.delivery_id.in_(theirs)))
    await tx.connection.execute(sa.delete(content).where(content.c.id.in_(theirs)))
    await tx.connection.execute(sa.delete(deliveries).where(deliveries.c.id.in_(theirs)))
    if len(theirs) == PART:
        return PART
    await tx.connection.execute(sa.delete(content).where(content.c.id.in_(ids)))
    if table is events:
        await tx.connection.execute(sa.delete(content).where(content.c.event_id.in_(ids)))
    await tx.connection.execute(sa.delete(table).where(table.c.id.in_(ids)))
    return len(ids)


async def _delete_subscriptions(tx: Transaction, cutoff: int) -> int:
    named = sa.exists().where(deliveries.c.subscription_id == subscriptions.c.id)
    ids = list(
        await tx.connection.scalars(
            sa.select(subscriptions.c.id)
            .where(is_deleted, subscriptions.c.movement.is_(None), subscriptions.c.updated_at < cutoff, ~named)
            .limit(BATCH)
        )
    )
    await tx.connection.execute(sa.delete(paces).where(paces.c.subscription_id.in_(ids)))
    await tx.connection.execute(sa.delete(subscriptions).where(subscriptions.c.id.in_(ids)))
    return len(ids)


async def _delete_redeliveries(tx: Transaction, cutoff: int) -> int:
    old = (
        sa.select(redeliveries.c.id)
        .where(redeliveries.c.id < id_floor(cutoff), redeliveries.c.finished_at < cutoff)
        .order_by(redeliveries.c.id)
        .limit(BATCH)
    )
    result = await tx.connection.execute(sa.delete(redeliveries).where(redeliveries.c.id.in_(old)))
    return result.rowcount


async def forget_answers(tx: Transaction, items: Sequence[None]) -> list[int]:
    """Delete idempotency answers that are past their time. Answers how many."""
    old = (
        sa.select(idempotency.c.account, idempotency.c.route, idempotency.c.key)
        .where(idempotency.c.created_at < tx.now - KEPT_MS)
        .limit(BATCH)
    )
    columns = sa.tuple_(idempotency.c.account, idempotency.c.route, idempotency.c.key)
    result = await tx.connection.execute(sa.delete(idempotency).where(columns.in_(old)))
    return [result.rowcount, *(0 for _ in items[1:])]


async def unknown_leases(tx: Transaction, known: Sequence[frozenset[str]]) -> list[set[str]]:
    """The deliveries leased to this session that the process does not know of."""
    rows = await tx.connection.scalars(
        sa.select(deliveries.c.id).where(
            is_live, deliveries.c.state == DeliveryState.LEASED, deliveries.c.session == tx.session
        )
    )
    leased = set(rows)
    return [leased - ids for ids in known]


async def interrupt(tx: Transaction, groups: Sequence[Sequence[str]]) -> list[int]:
    """Free leases of our own that nobody works on."""
    return [await settling.interrupt(tx, list(ids), held_by=tx.session) for ids in groups]
