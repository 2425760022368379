"""Processes beside others: the registry of who has a session and what hangs on it, and where each role listens."""

from __future__ import annotations

import os
import socket
import time
from importlib.metadata import version
from typing import Any

import pytest
import sqlalchemy as sa

from dispatcher.config import load
from dispatcher.store.records import TaskClaim
from dispatcher.store.sessions import open_session
from dispatcher.store.tables import paces, sessions
from dispatcher.store.workers import list_workers
from tests.support.stores import Home, accept, lease, new_task, open_store


async def test_each_process_and_what_it_has_leased(home: Home) -> None:
    async with open_store(home) as store:
        idle = await open_session(store.database, ttl=60, alone=False, role="api")
        await accept(store, *(new_task() for _ in range(5)), *(new_task(task_type="slow") for _ in range(3)))
        await lease(store, limit=2)
        await store.lease_tasks(TaskClaim(types=("slow",), limit=1))
        # A processor elsewhere holds this one; no process of ours works on it.
        await store.lease_tasks(TaskClaim(types=("slow",), limit=1, lease_for={"slow": 60.0}))

        # One pace is kept, one was.
        kept = [
            {"subscription_id": "a" * 32, "session": store.session, "until": time.time() * 1000 + 3_600_000},
            {"subscription_id": "b" * 32, "session": store.session, "until": 0.0},
        ]
        async with store.database.write() as connection:
            await connection.execute(sa.insert(paces), kept)

        busy, other = await list_workers(store.database)

        assert (busy.role, busy.deliveries, busy.tasks, busy.paces) == ("all", 2, 1, 1)
        assert (other.id, other.role, other.deliveries, other.tasks, other.paces) == (idle, "api", 0, 0, 0)
        for one in (busy, other):
            assert (one.host, one.pid) == (socket.gethostname(), os.getpid())
            assert (one.version, one.overdue) == (version("webhook-dispatcher"), False)


async def test_a_heartbeat_has_an_age(home: Home) -> None:
    async with open_store(home) as store:
        await open_session(store.database, ttl=-1, alone=False)
        async with store.database.write() as connection:
            await connection.execute(sa.update(sessions).values(heartbeat_at=sessions.c.heartbeat_at - 3_600_000))
        assert await store.heartbeat()

        mine, late = await list_workers(store.database)

        assert mine.heartbeat_age is not None
        assert late.heartbeat_age is not None
        assert 0 <= mine.heartbeat_age < 3600 <= late.heartbeat_age
        assert (mine.overdue, late.overdue) == (False, True)


async def test_a_process_of_an_older_version_says_less(home: Home) -> None:
    async with open_store(home) as store:
        older = sa.insert(sessions).values(id="0" * 32, host="elsewhere", pid=1, started_at=0, expires_at=0)
        async with store.database.write() as connection:
            await connection.execute(older)

        [first, _] = await list_workers(store.database)

        assert (first.host, first.role, first.version, first.heartbeat_age) == ("elsewhere", "all", "", None)


@pytest.mark.parametrize(
    ("variables", "options", "port"),
    [
        ({}, {}, 8080),
        ({}, {"role": "api"}, 8080),
        ({}, {"role": "worker"}, 8081),
        ({}, {"role": "worker", "port": 9000}, 9000),
        ({"ROLE": "worker"}, {}, 8081),
        ({"ROLE": "worker", "PORT": "9000"}, {}, 9000),
        ({"ROLE": "worker"}, {"role": "api"}, 8080),
        ({"PORT": "9000"}, {"role": "worker"}, 9000),
    ],
)
def test_where_a_role_listens(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], options: dict[str, Any], port: int
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"DISPATCHER_{name}", value)
    assert load(**options).port == port
