"""Looks into the database all the time, by plain SQL on connections of its own: who holds what, and what has ended.

No code of the store is used. While the database is away the watch waits for it to come back.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from tests.e2e.chaos.nodes import AWAY, DATABASE, Pair, close
from tests.support import postgres

#: seconds between two looks at sessions and leases
EVERY = 0.25
#: seconds between two looks at all that has ended, and how many times longer than they take
AUDIT_EVERY = 15.0
AUDIT_SHARE = 10.0

#: a delivery and the number of an attempt
Sending = tuple[str, int]

LIVE = "('pending', 'leased', 'held')"


@dataclass(kw_only=True)
class Session:
    """A session of a process, as it was last seen."""

    pid: int
    #: what it held when it was last seen
    leases: frozenset[Sending] = frozenset()
    #: monotonic time at which it was first missed; None while it is there
    ended_at: float | None = None


@dataclass(kw_only=True)
class Watch:
    """What was seen so far."""

    pair: Pair
    sessions: dict[str, Session] = field(default_factory=dict)
    #: deliveries and tasks that have ended, as they were then: state, attempt, moment
    ended: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    #: those that were found otherwise later
    changed: list[str] = field(default_factory=list)
    looks: int = 0
    audits: int = 0
    _task: asyncio.Task[None] | None = None
    _connection: Any = None
    _node: Any = None

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if self._connection is not None:
            await close(self._connection)

    def of(self, pid: int) -> list[Session]:
        """The sessions that a process had, the oldest first."""
        return [session for session in self.sessions.values() if session.pid == pid]

    def has_session(self, pid: int) -> bool:
        """Whether a process has a session now."""
        return any(session.ended_at is None for session in self.of(pid))

    def leases(self, pid: int) -> int:
        """How many leases a process holds."""
        return sum(len(session.leases) for session in self.of(pid) if session.ended_at is None)

    async def _run(self) -> None:
        next_audit = 0.0
        while True:
            try:
                await self._look()
                if (began := time.monotonic()) > next_audit:
                    await self.audit()
                    next_audit = began + max(AUDIT_EVERY, AUDIT_SHARE * (time.monotonic() - began))
            except AWAY:
                await self._leave()
            await asyncio.sleep(EVERY)

    async def _leave(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def _connected(self) -> Any:
        if self._connection is None or self._connection.is_closed() or self._node is not self.pair.primary:
            await self._leave()
            self._node = self.pair.primary
            self._connection = await asyncpg.connect(
                host="127.0.0.1",
                port=self._node.port,
                user=postgres.SUPERUSER,
                database=DATABASE,
                timeout=5,
                ssl=False,
                server_settings={"application_name": "watch"},
            )
        return self._connection

    async def _look(self) -> None:
        connection = await self._connected()
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            rows = await connection.fetch("SELECT id, pid FROM sessions", timeout=5)
            held = await connection.fetch(
                "SELECT session, id, attempt FROM deliveries WHERE state = 'leased' AND state IN " + LIVE, timeout=5
            )
        leases: dict[str, set[Sending]] = {}
        for session, delivery, attempt in held:
            leases.setdefault(session, set()).add((delivery, attempt))
        for id_, pid in rows:
            session = self.sessions.setdefault(id_, Session(pid=pid))
            session.leases = frozenset(leases.get(id_, ()))
        there = {row[0] for row in rows}
        for id_, session in self.sessions.items():
            if id_ in leases and id_ not in there:
                # It is over, and its leases are not freed yet.
                session.leases |= leases[id_]
            if session.ended_at is None and id_ not in there and id_ not in leases:
                session.ended_at = time.monotonic()
        self.looks += 1

    async def audit(self) -> None:
        """Hold all that has ended against how it was seen before. Raises one of AWAY while the database is."""
        node = self.pair.primary
        found = await node.fetch(
            f"SELECT id, state, reason, attempt, finished_at FROM deliveries WHERE state NOT IN {LIVE}"
        )
        found += await node.fetch(
            "SELECT 'task ' || id, state, '', 0, finished_at FROM tasks WHERE state NOT IN ('queued', 'processing')"
        )
        now = {row[0]: tuple(row[1:]) for row in found}
        for id_, was in self.ended.items():
            if now.get(id_) != was:
                self.changed.append(f"{id_}: {was}, later {now.get(id_)}")
        self.ended.update(now)
        self.audits += 1
