"""No statement of the store reads a whole table, whatever is in it: each one is explained by the database."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from dispatcher.bodies import Body
from dispatcher.ids import new_id
from dispatcher.models import Outcome, TaskState
from dispatcher.store import Store, publishing, queries, workers
from dispatcher.store.deliveries import Release
from dispatcher.store.records import IdempotencyKey, LaneClaim, TaskClaim, TaskReport
from dispatcher.store.redelivering import Bulk, Criteria
from dispatcher.store.rotating import Rotation
from dispatcher.store.statements import Prepared
from dispatcher.store.work import Renewal, TaskRelease
from subscriptions.models import Movement, Ordering, Verification
from tests.support.stores import (
    ACCOUNT,
    LANE,
    Home,
    accept,
    draft,
    enable,
    lease,
    lease_for,
    new_event,
    new_task,
    open_store,
    publish,
    settle,
    signing_key,
    subscribe,
    subscription_row,
    who,
)

#: indexes that hold only what is being worked on at this moment
SMALL_INDEXES = ("ix_tasks_processing", "ix_subscriptions_moving", "ix_redeliveries_running")
#: tables that grow with traffic
GROWING = (
    "tasks",
    "events",
    "deliveries",
    "bodies",
    "attempts",
    "idempotency",
    "subscriptions",
    "secrets",
    "notices",
    "redeliveries",
)
#: for a statement with these words, the index that it has to use: any other grows with what waits, or with the account
WANTED = {
    "tasks.callback_url IS NOT NULL AND tasks.window_end <= ?": "ix_tasks_window_end",
    "deliveries.lane = ? AND deliveries.order_key = ? AND deliveries.state IN ('pending'": "ix_deliveries_ordered",
    "WHERE deliveries.lane = ? AND deliveries.order_key = ? AND deliveries.seq IS NOT NULL": "ix_deliveries_in_turn",
    "deliveries.due_at IS NULL AND deliveries.seq IS NOT NULL AND deliveries.lane = ?": "ix_deliveries_behind",
    "WHERE deliveries.state = 'held' AND deliveries.subscription_id = ?": "ix_deliveries_held",
    "WHERE deliveries.state = 'held' AND deliveries.hold_until <= ?": "ix_deliveries_hold_until",
    "WHERE subscriptions.movement IS NOT NULL": "ix_subscriptions_moving",
    "WHERE subscriptions.state = 'deleted' AND": "ix_subscriptions_deleted",
    "WHERE subscriptions.granting = ?": "ix_subscriptions_granting",
    "WHERE subscriptions.account = ? AND subscriptions.version > ?": "ix_subscriptions_account_version",
    "WHERE secrets.notice_at IS NOT NULL AND secrets.notice_at <= ?": "ix_secrets_ending",
    "WHERE notices.due_at <= ?": "ix_notices_due_at",
    "WHERE redeliveries.state = 'running'": "ix_redeliveries_running",
    "WHERE deliveries.subscription_id = ? AND deliveries.id > ?": "ix_deliveries_subscription_id",
}


async def test_every_statement_uses_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:
        if statement.startswith(("SELECT", "UPDATE", "DELETE", "WITH")) and "alembic" not in statement:
            seen.setdefault(statement, parameters[0] if many else parameters)

    executions = Prepared.executions

    def noted(prepared: Prepared, rows: Any) -> Iterator[tuple[str, Any]]:
        for statement, parameters in executions(prepared, rows):
            note(None, None, statement, tuple(parameters), None, many=False)
            yield statement, parameters

    # the hot path's statements pass SQLAlchemy by
    monkeypatch.setattr(Prepared, "executions", noted)
    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        async with open_store(Home(data_dir=tmp_path / "data")) as store:
            await exercise(store)
            await exercise_subscriptions(store)
            plans = {}
            async with store.database.read() as connection:
                for statement, parameters in list(seen.items()):
                    rows = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
                    plans[statement] = [row.detail for row in rows]
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
    assert len(plans) > 40
    assert any("json_each" in statement for statement in plans)
    scans = {
        statement: detail
        for statement, plan in plans.items()
        for detail in plan
        if re.match(rf"SCAN ({'|'.join(GROWING)})\b", detail) and not detail.endswith(SMALL_INDEXES)
    }
    assert scans == {}
    # Leasing sorts at most what it leases, never a backlog: whatever is sorted has a LIMIT of its own inside.
    sorted_backlogs = [
        statement
        for statement, plan in plans.items()
        if "due_at <= ?" in statement and "TEMP B-TREE" in str(plan) and statement.count("LIMIT") < 2
    ]
    assert sorted_backlogs == []
    for words, index in WANTED.items():
        meant = {statement: plan for statement, plan in plans.items() if words in " ".join(statement.split())}
        assert meant, words
        for statement, plan in meant.items():
            assert any(index in detail for detail in plan), (statement, plan)
    # What is held is released in order straight from its index.
    assert not [
        statement for statement, plan in plans.items() if "ix_deliveries_held" in str(plan) and "B-TREE" in str(plan)
    ]


async def exercise(store: Store) -> None:
    """Call everything that the store can do with tasks."""
    task, other, cancelled, moved = new_task(), new_task(), new_task(), new_task()
    work = [new_task(task_type="slow") for _ in range(4)]
    key = IdempotencyKey(account=ACCOUNT, route="r", key="k", fingerprint=b"0" * 32)
    await accept(store, task, key=key)
    await accept(store, other, cancelled, moved, *work, new_task(window_end=int(time.time() * 1000) - 1))
    await accept(store, new_task(window_end=int(time.time() * 1000) - 1, task_type="slow"))
    await store.due_lanes(after="", limit=10)
    await store.cancel_task(ACCOUNT, cancelled.id)
    await store.replace_callback(ACCOUNT, moved.id, moved.callback)
    [first, *rest] = await lease(store)
    await settle(store, first, Outcome.HTTP_ERROR, 404)
    await store.redeliver(ACCOUNT, first.id, key)
    await settle(store, rest[0])
    await store.replace_callback(ACCOUNT, other.id, other.callback)
    for leased in rest[1:]:
        await store.release(Release(delivery_id=leased.id, attempt=leased.attempt))
    await store.lease([LaneClaim(lane=LANE, limit=1), LaneClaim(lane="x y", limit=1)])
    await store.unknown_leases(frozenset())
    await store.interrupt([leased.id for leased in await lease(store)])
    leased_tasks = await store.lease_tasks(TaskClaim(types=("slow", "other"), limit=2))
    await store.release_task(TaskRelease(task_id=leased_tasks[0].id, attempt=1))
    await store.finish_task(
        TaskReport(
            task_id=leased_tasks[1].id, attempt=1, state=TaskState.SUCCEEDED, body=Body(b"1", "application/json")
        )
    )
    claim = TaskClaim(types=("slow",), limit=2, account=ACCOUNT, lease_for={"slow": 60.0})
    [far, near] = await store.lease_tasks(claim)
    await store.renew_task(Renewal(task_id=far.id, attempt=far.attempt, account=ACCOUNT, seconds=5.0))
    await store.finish_task(TaskReport(task_id=near.id, attempt=near.attempt, account=ACCOUNT, remote=True, retry_in=0))
    await store.reap()
    await store.end_windows()
    await store.delete_old(0)
    await store.forget_answers()
    await store.ledger(ACCOUNT)
    await store.account(ACCOUNT)
    await workers.list_workers(store.database)
    await queries.next_task_due(store.database, ("slow", "other"))
    await queries.task(store.database, ACCOUNT, task.id)
    await queries.delivery(store.database, ACCOUNT, first.id)
    await queries.leased_task(store.database, ACCOUNT, task.id)
    for state in (None, "pending"):
        for before in (None, new_id()):
            await queries.list_tasks(store.database, ACCOUNT, limit=5, before=before, state=state, type=None)
            await queries.list_deliveries(
                store.database, ACCOUNT, limit=5, before=before, state=state, source_id=task.id if state else None
            )


async def let_time_pass(store: Store, statement: str) -> None:
    """Change moments in the database. The statement is ours, not the store's: it begins with a comment."""
    async with store.database.write() as connection:
        await connection.execute(sa.text(f"/* test */ {statement}"))


async def exercise_subscriptions(store: Store) -> None:
    """Call everything that it can do with events and subscriptions."""
    owner = who(store)
    key = IdempotencyKey(account=ACCOUNT, route="e", key="k", fingerprint=b"0" * 32)
    await store.set_operational(owner, draft(store, "ops", operational=True), signing_key())
    plain, fifo = await subscribe(store, "plain"), await subscribe(store, "fifo", ordering=Ordering.FIFO_BY_KEY)
    # publish, lease and settle
    await publish(store, *(new_event(ordering_key=name) for name in "aabbcc"))
    roster = await store.roster(ACCOUNT)
    await store.opened(roster.subscribers)
    for id_ in (plain, fifo):
        first, second, *_ = await lease_for(store, id_)
        await settle(store, first)
        await settle(store, second, Outcome.TIMEOUT, None)
    [again, *_] = await queries.recent(store.database, plain, limit=2)
    # disable, hold, release, enable, discard
    for then in (Movement.RELEASE, Movement.DISCARD):
        for id_ in (plain, fifo):
            await store.disable_subscription(owner, id_)
        await publish(store, *(new_event(ordering_key="a") for _ in range(3)))
        await lease_for(store, plain, 1)
        for _ in range(3):
            await store.move_deliveries(100)
        await store.end_holds()
        await enable(store, plain, then)
        await enable(store, fifo, then)
        for _ in range(3):
            await store.move_deliveries(100)
    await publish(store, *(new_event(ordering_key="a") for _ in range(3)))
    for one in (*await lease_for(store, plain), *await lease_for(store, fifo)):
        await store.release(Release(delivery_id=one.id, attempt=one.attempt))
    # change, ask, grant
    asked = await subscribe(store, "asked", verification=Verification.HANDSHAKE)
    await store.grant_handshake((await subscription_row(store, asked))["granting"], 1.0)
    await store.change_subscription(owner, asked, lambda _before: draft(store, "moved"))
    await store.ping_subscription(owner, asked)
    # secrets
    await store.rotate_secret(owner, plain, Rotation(key=signing_key(), overlap=60.0), lambda _s, _k: None)
    second_key = await store.rotate_secret(owner, plain, Rotation(key=signing_key(), overlap=60), lambda _s, _k: None)
    await store.revoke_secret(owner, plain, second_key.id)
    for times in ("notice_at = 1", "notice_at = 1, valid_until = 1"):
        await let_time_pass(store, f"UPDATE secrets SET {times} WHERE valid_until IS NOT NULL")
        await store.end_secrets()
    # send again
    await store.redeliver(ACCOUNT, first.id, key)
    for subscription_id in (None, plain):
        for _ in range(2):
            criteria = Criteria(since=0, subscription_id=subscription_id, states=("cancelled",))
            job = Bulk(id=new_id(), account=ACCOUNT, criteria=criteria, key=None)
            await store.redeliver_all(job)
            await store.step_redeliveries()
    # notices, twice: to be told, and to be forgotten
    for _ in range(2):
        await store.tell("/test")
        await let_time_pass(store, "UPDATE notices SET due_at = 0")
    # fan out, and delete
    at_once, publishing.AT_ONCE = publishing.AT_ONCE, 0
    try:
        big = new_event()
        await publish(store, big)
    finally:
        publishing.AT_ONCE = at_once
    while (await store.fan_out()).count:
        pass
    await lease_for(store, plain, 1)
    await store.delete_subscription(owner, plain)
    await lease_for(store, plain, 1)
    await store.move_deliveries(100)
    await store.reap()
    await store.delete_old(0)
    # read
    await store.ledger(ACCOUNT)
    await queries.event(store.database, ACCOUNT, big.id)
    await queries.delivery(store.database, ACCOUNT, again["id"])
    await queries.delivery_state(store.database, again["id"])
    await queries.is_subscription(store.database, ACCOUNT, plain)
    await queries.redelivery(store.database, ACCOUNT, job.id)
    for before in (None, new_id()):
        await queries.list_events(store.database, ACCOUNT, limit=5, before=before, type="order.paid")
        await queries.list_subscriptions(store.database, ACCOUNT, limit=5, before=before, state="active")
        await queries.list_redeliveries(store.database, ACCOUNT, limit=5, before=before)
        await queries.list_deliveries(store.database, ACCOUNT, limit=5, before=before, subscription_id=fifo)
