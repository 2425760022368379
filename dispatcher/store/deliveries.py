"""Every statement that moves a delivery after it was leased: settle, release, reap, interrupt, cancel, redeliver.

docs/states.md draws the states. A lease raises `attempt`; that number is the fencing token, so whoever reports on
an older one changes nothing.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

import sqlalchemy as sa
import structlog

from dispatcher import retry
from dispatcher.errors import LeaseLost
from dispatcher.models import TERMINAL_STATES, DeliveryState, Mark, Outcome, lane_of
from dispatcher.store import ledger
from dispatcher.store.committer import Transaction
from dispatcher.store.records import (
    AttemptRecord,
    Released,
    Report,
    Settled,
)
from dispatcher.store.sessions import is_over
from dispatcher.store.tables import attempts, deliveries, is_live, tasks

log = structlog.get_logger(__name__)


# --- settle -----------------------------------------------------------------------------------------------


async def settle(tx: Transaction, reports: Sequence[Report]) -> list[Settled | LeaseLost]:
    """Record attempts and what follows from them. A report on a lease that is no longer held answers LeaseLost."""
    rows = await _reported(tx, [report.delivery_id for report in reports])
    results: list[Settled | LeaseLost] = []
    kept: list[tuple[Report, sa.RowMapping, retry.Decision]] = []
    for report in reports:
        row = rows.get(report.delivery_id)
        if row is None or row["attempt"] != report.attempt or row["session"] != tx.session:
            results.append(LeaseLost("the lease of this delivery is no longer held"))
            continue
        decision = _decide(report, row, tx.now)
        kept.append((report, row, decision))
        results.append(
            Settled(
                state=decision.state,
                lane=_lane(row),
                delay=decision.delay,
                pause=decision.pause,
            )
        )
    await _write_outcomes(tx, kept)
    return results


async def reap(tx: Transaction, limit: int) -> int:
    """Free what dead sessions left leased, `limit` at most. Answers how many there were."""
    ids = await tx.connection.scalars(
        sa.select(deliveries.c.id)
        .where(is_live, deliveries.c.state == DeliveryState.LEASED, is_over(deliveries.c.session))
        .limit(limit)
    )
    return await interrupt(tx, list(ids))


async def interrupt(tx: Transaction, ids: list[str], *, held_by: str | None = None) -> int:
    """Record that leases of these deliveries ended without a report; of one session only, if it is named."""
    rows = await _reported(tx, ids)
    kept = []
    for row in rows.values():
        if held_by is None or row["session"] == held_by:
            report = _interrupted(row["id"], row["attempt"])
            kept.append((report, row, _decide(report, row, tx.now)))
    await _write_outcomes(tx, kept)
    return len(kept)


def _interrupted(delivery_id: str, attempt: int) -> Report:
    now = monotonic()
    return Report(
        delivery_id=delivery_id,
        attempt=attempt,
        answer=retry.Answer(outcome=Outcome.INTERRUPTED),
        record=AttemptRecord(
            outcome=Outcome.INTERRUPTED,
            error="the worker ended without a report; the request may have been sent",
            started=now,
            ended=now,
        ),
        schedule=(),
        jitter=random.uniform(-1, 1),  # noqa: S311 - spreads retries; nothing secret hangs on it
    )


async def _reported(tx: Transaction, ids: list[str]) -> dict[str, sa.RowMapping]:
    if not ids:
        return {}
    rows = await tx.connection.execute(
        sa.select(deliveries, tasks.c.window_end, tasks.c.callback_origin)
        .select_from(deliveries.join(tasks, tasks.c.id == deliveries.c.task_id))
        .where(deliveries.c.id.in_(ids), deliveries.c.state == DeliveryState.LEASED)
        .with_for_update(of=deliveries)
    )
    return {row["id"]: row for row in rows.mappings()}


def _decide(report: Report, row: sa.RowMapping, now: int) -> retry.Decision:
    return retry.decide(
        report.answer,
        retry.History(
            failures=row["failures"],
            last_outcome=Outcome(row["last_outcome"]) if row["last_outcome"] else None,
            repeats=row["repeats"],
            mark=Mark(row["mark"]) if row["mark"] else None,
        ),
        schedule=report.schedule,
        now=now / 1000,
        window_end=row["window_end"] / 1000 if row["window_end"] is not None else None,
        jitter=report.jitter,
    )


def _lane(row: sa.RowMapping) -> str:
    return lane_of(row["account"], row["callback_origin"])


async def _write_outcomes(tx: Transaction, kept: Sequence[tuple[Report, sa.RowMapping, retry.Decision]]) -> None:
    if not kept:
        return
    due = {report.delivery_id: _due_at(decision, tx.now) for report, _, decision in kept}
    await tx.connection.execute(
        sa.insert(attempts),
        [_attempt_row(report, tx, due[report.delivery_id]) for report, _, _ in kept],
    )
    await tx.connection.execute(
        _settle_statement(),
        [
            {
                "key": row["id"],
                "state": decision.state,
                "reason": decision.reason,
                # What has ended keeps the lane that it was sent in; what goes on follows its callback.
                "lane": row["lane"] if decision.state in TERMINAL_STATES else _lane(row),
                "failures": decision.failures,
                "last_outcome": report.answer.outcome,
                "repeats": decision.repeats,
                "due_at": due[report.delivery_id],
                "finished_at": tx.now if decision.state in TERMINAL_STATES else None,
            }
            for report, row, decision in kept
        ],
    )
    await wipe(
        tx,
        {
            row["task_id"]
            for _, row, decision in kept
            if decision.state in {DeliveryState.DELIVERED, DeliveryState.EXPIRED}
        },
    )
    await ledger.count(
        tx,
        Counter((row["account"], decision.state) for _, row, decision in kept if decision.state in TERMINAL_STATES),
    )


def _settle_statement() -> sa.Update:
    columns = (
        "state", "reason", "lane", "failures", "last_outcome", "repeats", "due_at", "finished_at"
    )  # fmt: skip
    return (
        sa.update(deliveries)
        .where(deliveries.c.id == sa.bindparam("key"))
        .values(mark=None, session=None, **{name: sa.bindparam(name) for name in columns})
    )


def _due_at(decision: retry.Decision, now: int) -> int | None:
    return None if decision.delay is None else now + round(decision.delay * 1000)


def _attempt_row(report: Report, tx: Transaction, retry_at: int | None) -> dict[str, Any]:
    record = report.record
    return {
        "delivery_id": report.delivery_id,
        "number": report.attempt,
        "outcome": record.outcome,
        "status": record.status,
        "error": record.error,
        "started_at": tx.now - round((tx.clock - record.started) * 1000),
        "duration_ms": round((record.ended - record.started) * 1000, 1),
        "retry_at": retry_at,
        "truncated": record.truncated,
        "response_headers": [list(header) for header in record.response_headers] or None,
        "response_body": record.response_body,
        "timing": record.timing,
    }


async def wipe(tx: Transaction, task_ids: set[str]) -> None:
    """Forget callback URLs, and the secrets and headers that went with them, for good."""
    if task_ids:
        await tx.connection.execute(
            sa.update(tasks)
            .where(tasks.c.id == sa.bindparam("key"))
            .values(callback_url=None, callback_secret=None, callback_headers=None),
            [{"key": task_id} for task_id in sorted(task_ids)],
        )


# --- give back --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """A lease given back before anything was sent, to be due again after `delay` seconds."""

    delivery_id: str
    attempt: int
    delay: float = 0.0


async def release(tx: Transaction, releases: Sequence[Release]) -> list[Released | None]:
    """Give leases back as if they had never been taken: the attempt's number is free again.

    That is safe because only the holder does this, and it has forgotten the delivery. A mark that was put meanwhile
    is applied; a new callback URL owes the old one's pause nothing. Answers where each waits, None where none does.
    """
    rows = await _reported(tx, [release.delivery_id for release in releases])
    results: list[Released | None] = []
    cancelled, pending = [], []
    for release in releases:
        row = rows.get(release.delivery_id)
        if row is None or row["attempt"] != release.attempt or row["session"] != tx.session:
            results.append(None)
        elif row["mark"] == Mark.CANCEL:
            cancelled.append(row)
            results.append(None)
        else:
            delay = 0.0 if row["mark"] == Mark.RETARGET else release.delay
            released = Released(lane=_lane(row), delay=delay)
            pending.append({"key": row["id"], "lane": released.lane, "due_at": tx.now + round(delay * 1000)})
            results.append(released)
    await cancel(tx, cancelled)
    if pending:
        await tx.connection.execute(
            sa.update(deliveries)
            .where(deliveries.c.id == sa.bindparam("key"))
            .values(
                state=DeliveryState.PENDING,
                attempt=deliveries.c.attempt - 1,
                session=None,
                mark=None,
                lane=sa.bindparam("lane"),
                due_at=sa.bindparam("due_at"),
            ),
            pending,
        )
    return results


async def cancel(tx: Transaction, rows: Sequence[sa.RowMapping]) -> None:
    """End deliveries that nobody is sending as cancelled."""
    if not rows:
        return
    await tx.connection.execute(
        sa.update(deliveries)
        .where(deliveries.c.id.in_([row["id"] for row in rows]))
        .values(
            state=DeliveryState.CANCELLED,
            reason="cancelled",
            mark=None,
            session=None,
            due_at=None,
            finished_at=tx.now,
        )
    )
    await ledger.count(tx, Counter((row["account"], DeliveryState.CANCELLED) for row in rows))


# --- send again -------------------------------------------------------------------------------------------


async def insert_redelivery(tx: Transaction, row: sa.RowMapping, *, delivery_id: str, lane: str) -> None:
    """Make a new delivery of an ended one, due now. It keeps the wire id, so that receivers recognise it."""
    await tx.connection.execute(
        sa.insert(deliveries).values(
            id=delivery_id,
            account=row["account"],
            task_id=row["task_id"],
            wire_id=row["wire_id"],
            redelivery_of=row["id"],
            lane=lane,
            state=DeliveryState.PENDING,
            attempt=0,
            failures=0,
            repeats=0,
            due_at=tx.now,
            body_id=row["body_id"],
            created_at=tx.now,
        )
    )
    await tx.connection.execute(sa.update(tasks).where(tasks.c.id == row["task_id"]).values(delivery_id=delivery_id))
    await ledger.count(tx, Counter({(row["account"], ledger.ACCEPTED): 1}))
