"""Retention, in the store itself: what is old and finished goes with all that belongs to it; nothing else does."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path

from dispatcher.config import Settings
from dispatcher.ids import id_floor
from dispatcher.installation import open_installation
from dispatcher.store import Store
from tests.conftest import of_the_file
from tests.support.api import accept, ended, in_state, stored, worked
from tests.support.receiver import Receiver, Reply
from tests.support.server import Server

DAY_MS = 86_400_000
DAY = 86_400.0


def make_older(data_dir: Path, task_id: str, days: float) -> str:
    """Move a task and its deliveries into the past, ids included, since ids tell when they were made."""
    past = round(days * DAY_MS)
    connection = sqlite3.connect(data_dir / "dispatcher.db")
    with connection:
        made = connection.execute("SELECT created_at FROM tasks WHERE id = ?", (task_id,)).fetchone()[0]
        older = id_floor(made - past)[:12] + task_id[12:]
        connection.execute(
            "UPDATE tasks SET id = ?, created_at = created_at - ?, finished_at = finished_at - ? WHERE id = ?",
            (older, past, past, task_id),
        )
        connection.execute(
            "UPDATE deliveries SET source_id = ?, created_at = created_at - ?, finished_at = finished_at - ?"
            " WHERE source_id = ?",
            (older, past, past, task_id),
        )
        connection.execute("UPDATE bodies SET id = ? WHERE id = ?", (older, task_id))
    connection.close()
    return older


def counts(data_dir: Path) -> dict[str, int]:
    connection = sqlite3.connect(data_dir / "dispatcher.db")
    found = {
        table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        for table in ("tasks", "deliveries", "bodies", "attempts")
    }
    connection.close()
    return found


def delete_old(data_dir: Path, age: float) -> int:
    """What maintenance does every few minutes, with nobody else at work."""

    async def run() -> int:
        installation = await open_installation(Settings(data_dir=data_dir))
        store = await Store.open(installation.database, installation.keyring, session_ttl=60, alone=True)
        deleted = 0
        for _ in range(100):
            done = await store.delete_old(age)
            deleted += done
            if not done:
                break
        await store.close()
        await installation.database.close()
        return deleted

    return asyncio.run(run())


@of_the_file  # tests/dispatcher/test_partitions.py has it for PostgreSQL
def test_old_finished_tasks_go_and_the_rest_stays(start_server: Callable[..., Server]) -> None:
    options = ["--processors", "tests.support.processors"]
    settings = {"retry_schedule": "[0.05]", "external_processors": '{"outside": 30}'}
    server = start_server("retained", settings=settings, options=options)

    def answer(request: object) -> Reply:
        path = getattr(request, "target", "")
        if path == "/fail":
            return Reply(status=500)
        return Reply(status=503, headers=(("Retry-After", "3600"),)) if path == "/later" else Reply()

    with Receiver(answer) as receiver, Receiver(answer) as patient, server.client() as client:
        relayed = [accept(client, receiver.url) for _ in range(3)]
        processed = accept(client, receiver.url, type="double", payload={"n": 1})
        worked(client, processed["id"])
        failed = accept(client, f"{receiver.url}/fail")
        queued = accept(client, receiver.url, type="outside")
        for task in (*relayed, processed, failed):
            ended(client, task["delivery_id"])
        waiting = accept(client, f"{patient.url}/later")
        in_state(client, waiting["delivery_id"], "pending")
        before = stored(client)["accepted"]
    assert server.stop() in {0, -15}
    data_dir = server.data_dir
    assert counts(data_dir) == {"tasks": 7, "deliveries": 7, "bodies": 8, "attempts": 7}

    # young, or exactly within the age: all stay
    assert delete_old(data_dir, 30 * DAY) == 0
    kept = make_older(data_dir, relayed[0]["id"], 29.9)
    assert delete_old(data_dir, 30 * DAY) == 0

    for task in (relayed[1], processed, failed):
        make_older(data_dir, task["id"], 30.1)
    live = [make_older(data_dir, task["id"], 400) for task in (queued, waiting)]
    assert delete_old(data_dir, 30 * DAY) == 3
    assert counts(data_dir) == {"tasks": 4, "deliveries": 4, "bodies": 4, "attempts": 3}

    # an idempotency key may still answer with what is younger than a day, whatever the age
    young = make_older(data_dir, relayed[2]["id"], 0.9)
    assert delete_old(data_dir, 1.0) == 1
    assert counts(data_dir)["tasks"] == 3

    server.start()
    with server.client() as client:
        assert client.get(f"/tasks/{kept}").status_code == 404
        for task_id in (young, *live):
            assert client.get(f"/tasks/{task_id}").status_code == 200
        now = stored(client)  # the ledger reconciles
        assert now["accepted"] == before
        ledger = client.get("/ledger").json()
        assert (ledger["delivered"], ledger["exhausted"], ledger["pending"]) == (4, 1, 2)
