"""A connection to SQLite that visits its thread once a statement, where aiosqlite's own does so four times.

A visit costs more than most of our statements: the event loop wakes the thread, and the thread wakes the loop. So a
cursor is made, executes, hands over all its rows and is closed in one go; what begins a transaction goes along with
its first statement; statements that need nothing of each other share a visit; and those whose rows nobody waits for
go along with what follows, at last with COMMIT.

Within a visit, the thread gives the interpreter back for each row that it reads, and then waits until the event loop
lets go of it again: that is what a row costs most, and why the rows of the hot path come packed into one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import aiosqlite

#: one statement, or the parts of one: each with its values
Parts = Sequence[tuple[str, Sequence[Any]]]
#: what follows from the rows of the steps before it; called in the connection's thread
Following = Callable[[list[list[Any]]], Parts]
#: makes rows of those in which they are packed; called in the connection's thread
Unpack = Callable[[list[Any]], list[Any]]
#: is told how many rows a statement changed or found, and which it found; called in the connection's thread
Check = Callable[[int, list[Any]], None]

#: statements that stay prepared: one with many rows takes as long to prepare as to execute
PREPARED = 512


@dataclass(frozen=True, slots=True)
class Step:
    """Statements that are executed one after the other, and answered together."""

    parts: Parts | Following
    #: None where rows come as they are
    unpack: Unpack | None = None

    def execute(self, cursor: sqlite3.Cursor, answers: list[list[Any]]) -> tuple[int, list[Any]]:
        """Execute it after those that were answered so. How many rows it changed or found, and which it found."""
        changed, rows = 0, list[Any]()
        for sql, values in self.parts(answers) if callable(self.parts) else self.parts:
            cursor.execute(sql, values)
            if cursor.description:
                # Only by its rows does one with RETURNING tell how many it changed.
                rows += cursor.fetchall()
            else:
                changed += cursor.rowcount
        if self.unpack is not None:
            rows = self.unpack(rows)
        return changed + len(rows), rows


class Connection(aiosqlite.Connection):
    """What SQLAlchemy's dialect for aiosqlite needs of a connection, and what the hot path does."""

    #: a transaction was begun, if only on paper
    _has_begun = False
    #: something was executed since the last transaction ended
    _is_used = False
    #: the last transaction got as far as its COMMIT
    reached_commit = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        #: what goes along with whatever is executed next: what begins the transaction, and what was left for later
        self._before: list[tuple[Step, Check | None]] = []

    def cursor(self) -> Cursor:  # type: ignore[override]  # a context manager as its parent's, of another class
        """A cursor for one statement at a time; nothing is done yet."""
        return Cursor(self)

    def begin(self, statement: str) -> None:
        """Begin a transaction with the next statement, by this one; where one has begun, it goes on."""
        if not self._has_begun:
            self._has_begun, self.reached_commit = True, False
            self._before = [(Step([(statement, ())]), None)]

    async def in_one_visit(self, method: str, *arguments: Any) -> _Done:
        """Call a method of a new cursor in the connection's thread, and take all that came of it."""
        done: _Done = await self._visit(self._do, method, arguments)
        return done

    async def run(self, steps: Sequence[Step]) -> list[list[Any]]:
        """Execute steps in this order, all in one visit. Answers the rows of each.

        Where one fails, none that follows is executed.
        """
        rows: list[list[Any]] = await self._visit(self._do_all, steps)
        return rows

    def leave(self, steps: Sequence[Step], check: Check | None = None) -> None:
        """Execute steps with what is executed next, before it: with COMMIT, if nothing else is.

        `check` is told how many rows the last one changed or found, and which it found; what it raises stops what
        follows.
        """
        self._before += [(step, None) for step in steps[:-1]]
        self._before += [(step, check) for step in steps[-1:]]

    async def commit(self) -> None:
        """Commit the transaction, if anything was done in it or is left."""
        if self._is_used or len(self._before) > 1:
            await self._visit(self._commit)
        self._is_over()

    async def rollback(self) -> None:
        """Roll back the transaction, if anything was done in it."""
        try:
            if self._is_used:
                await super().rollback()
        finally:
            self._is_over()

    def _is_over(self) -> None:
        self._before = []
        self._has_begun = self._is_used = False

    async def _visit(self, work: Callable[..., Any], *arguments: Any) -> Any:
        before, self._before = self._before, []
        self._is_used = True
        try:
            return await self._execute(work, before, *arguments)  # type: ignore[no-untyped-call]
        except sqlite3.Error:
            if not self._conn.in_transaction:
                # It did not begin; whatever is executed next must not do so outside of a transaction.
                self._before = before
            raise

    def _do(self, before: Sequence[tuple[Step, Check | None]], method: str, arguments: Sequence[Any]) -> _Done:
        cursor = self._conn.cursor()
        try:
            _execute(cursor, before)
            getattr(cursor, method)(*arguments)
            return _Done(cursor)
        finally:
            cursor.close()

    def _do_all(self, before: Sequence[tuple[Step, Check | None]], steps: Sequence[Step]) -> list[list[Any]]:
        cursor = self._conn.cursor()
        answers: list[list[Any]] = []
        try:
            _execute(cursor, before)
            for step in steps:
                answers.append(step.execute(cursor, answers)[1])
        finally:
            cursor.close()
        return answers

    def _commit(self, before: Sequence[tuple[Step, Check | None]]) -> None:
        self._do_all(before, ())
        self.reached_commit = True
        self._conn.commit()


def _execute(cursor: sqlite3.Cursor, steps: Sequence[tuple[Step, Check | None]]) -> None:
    for step, check in steps:
        count, rows = step.execute(cursor, [])
        if check is not None:
            check(count, rows)


class _Done:
    """What a statement left."""

    __slots__ = ("description", "lastrowid", "rowcount", "rows")

    def __init__(self, cursor: sqlite3.Cursor) -> None:
        self.description = cursor.description
        # Before its rows are read, a statement with RETURNING does not know how many it changed.
        self.rows = cursor.fetchall() if cursor.description else []
        self.rowcount = cursor.rowcount
        self.lastrowid = cursor.lastrowid


class Cursor:
    """Holds what its last statement left."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._done: _Done | None = None
        self.arraysize = 1

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        return None

    @property
    def description(self) -> Any:
        """The names of the columns that were returned, as in PEP 249."""
        return self._done.description if self._done else None

    @property
    def rowcount(self) -> int:
        """How many rows were changed; -1 if that is not known."""
        return self._done.rowcount if self._done else -1

    @property
    def lastrowid(self) -> int | None:
        """The row that was inserted last."""
        return self._done.lastrowid if self._done else None

    async def execute(self, sql: str, parameters: Any = ()) -> Self:
        """Execute a statement."""
        self._done = await self._connection.in_one_visit("execute", sql, parameters)
        return self

    async def executemany(self, sql: str, parameters: Any) -> Self:
        """Execute a statement for each set of parameters."""
        self._done = await self._connection.in_one_visit("executemany", sql, parameters)
        return self

    async def fetchall(self) -> list[Any]:
        """All rows."""
        if self._done is None:
            return []
        rows, self._done.rows = self._done.rows, []
        return rows

    async def close(self) -> None:
        """Nothing is open."""


def connect(file: str, **options: Any) -> Connection:
    """A connection to a file; await it to open it. Options go to `sqlite3.connect`."""
    connection = Connection(lambda: sqlite3.connect(file, cached_statements=PREPARED, **options), iter_chunk_size=64)
    # A thread that is stuck must not keep the process from ending.
    connection._thread.daemon = True
    return connection
