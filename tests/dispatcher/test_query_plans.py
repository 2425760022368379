"""No statement of the store reads a whole table, whatever is in it: each one is explained by the database."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from dispatcher.bodies import Body
from dispatcher.ids import new_id
from dispatcher.models import Outcome, TaskState
from dispatcher.store import queries
from dispatcher.store.deliveries import Release
from dispatcher.store.records import IdempotencyKey, LaneClaim, TaskClaim, TaskReport
from dispatcher.store.work import Renewal, TaskRelease
from tests.support.stores import ACCOUNT, LANE, accept, lease, new_task, open_store, settle

#: an index that holds only what is being worked on at this moment
SMALL_INDEX = "ix_tasks_processing"
#: tables that grow with traffic
GROWING = ("tasks", "deliveries", "bodies", "attempts", "idempotency")


async def test_every_statement_uses_an_index(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:
        if statement.startswith(("SELECT", "UPDATE", "DELETE", "WITH")) and "alembic" not in statement:
            seen.setdefault(statement, parameters[0] if many else parameters)

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        async with open_store(tmp_path / "data") as store:
            await exercise(store)
            plans = {}
            async with store.database.read() as connection:
                for statement, parameters in list(seen.items()):
                    rows = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
                    plans[statement] = [row.detail for row in rows]
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
    assert len(plans) > 40
    scans = {
        statement: detail
        for statement, plan in plans.items()
        for detail in plan
        if re.match(rf"SCAN ({'|'.join(GROWING)})\b", detail) and SMALL_INDEX not in detail
    }
    assert scans == {}
    # Leasing sorts at most what it leases, never a backlog: whatever is sorted has a LIMIT of its own inside.
    sorted_backlogs = [
        statement
        for statement, plan in plans.items()
        if "due_at <= ?" in statement and "TEMP B-TREE" in str(plan) and statement.count("LIMIT") < 2
    ]
    assert sorted_backlogs == []


async def exercise(store: Any) -> None:
    """Call everything that the store can do."""
    task, other, cancelled, moved = new_task(), new_task(), new_task(), new_task()
    work = [new_task(task_type="slow") for _ in range(4)]
    key = IdempotencyKey(account=ACCOUNT, route="r", key="k", fingerprint=b"0" * 32)
    await store.accept([task], key=key, answer=b"{}", then=lambda _result: None)
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
    await queries.next_task_due(store.database, ("slow", "other"))
    await queries.task(store.database, ACCOUNT, task.id)
    await queries.delivery(store.database, ACCOUNT, first.id)
    await queries.leased_task(store.database, ACCOUNT, task.id)
    for state in (None, "pending"):
        for before in (None, new_id()):
            await queries.list_tasks(store.database, ACCOUNT, limit=5, before=before, state=state, type=None)
            await queries.list_deliveries(
                store.database, ACCOUNT, limit=5, before=before, state=state, task_id=task.id if state else None
            )
