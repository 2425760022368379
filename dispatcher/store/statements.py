"""Statements of the hot path: written in SQLAlchemy's language, compiled once, and then handed rows as they are.

What SQLAlchemy does for each row and each statement that it executes costs more than most of ours do. So these take
tuples that need no conversion, enums as their values and JSON as text (`as_json`), and answer with tuples. Several of
them go to the database together (`run`). What differs between databases is known here and in `database`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from dispatcher.store import sqlite
from dispatcher.store.sqlite import Check

#: what a statement is executed with once: values in the order of its names
Row = Sequence[Any]
#: a statement, and the rows that it is executed with, one after the other: or what tells them, from what the steps
#: before it were answered
Step = tuple["Statement", "Sequence[Row] | Following"]
Following = Callable[[list[list[Any]]], Sequence[Row]]

_encode = msgspec.json.encode
_decode = msgspec.json.Decoder(list[list[Any]]).decode

#: rows that one INSERT takes at most on SQLite: its length is a power of two, so that there are few to prepare
MAX_ROWS = 64


def as_json(value: object) -> str | None:
    """A value for a JSON column; None is no value."""
    return None if value is None else _encode(value).decode()


def as_read(column: sa.Column[Any]) -> sa.ColumnElement[Any]:
    """A column as it is to be read: JSON as its text, which only some drivers leave as it is."""
    return sa.cast(column, sa.Text) if isinstance(column.type, sa.JSON) else column


# --- lists of ids -----------------------------------------------------------------------------------------


class Ids(sa.types.TypeDecorator[list[str]]):
    """A list of ids as one value: an array where there are arrays, else JSON."""

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        """What the database takes."""
        return dialect.type_descriptor(sa.ARRAY(sa.String()) if dialect.name == "postgresql" else sa.Text())

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> Any:
        """The list as the database takes it."""
        return value if dialect.name == "postgresql" else as_json(value)


class among(sa.ColumnElement[Any]):  # noqa: N801 - reads as SQL
    """Whether a column is one of the ids in the parameter of that name: the same words, however many there are."""

    # Not a Boolean: where there are none, SQLAlchemy compares that with 1, and no index is used.
    type = sa.types.NullType()
    inherit_cache = False

    def __init__(self, column: sa.ColumnElement[str], name: str) -> None:
        self.column = column
        self.ids = sa.bindparam(name, type_=Ids())


@compiles(among, "sqlite")
def _among_sqlite(element: among, compiler: SQLCompiler, **kw: Any) -> str:
    ids = compiler.process(element.ids, **kw)
    column = compiler.process(element.column, **kw)
    return f"{column} IN (SELECT value FROM json_each({ids}))"  # noqa: S608 - both are of the compiler


@compiles(among, "postgresql")
def _among_postgresql(element: among, compiler: SQLCompiler, **kw: Any) -> str:
    return f"{compiler.process(element.column, **kw)} = ANY ({compiler.process(element.ids, **kw)})"


# --- statements -------------------------------------------------------------------------------------------


class Statement:
    """A statement that is compiled once for each kind of database.

    `names` are its parameters, in the order of a row's values; of an INSERT they are the columns. Where the kinds of
    database do not share their words, `core` is a function that makes the statement for the dialect of a name.

    Of a SELECT that is `packed` all rows come at once from SQLite, which else hands them over one by one. It has no
    long values, which would be held several times over; numbers with a fraction are rounded to 15 digits.
    """

    def __init__(
        self, core: sa.ClauseElement | Callable[[str], sa.ClauseElement], *names: str, packed: bool = False
    ) -> None:
        self._core = core
        self._names = names
        self._packed = packed
        self._prepared: dict[str, Prepared] = {}

    def prepared(self, dialect: sa.Dialect) -> Prepared:
        """The statement as a database takes it."""
        found = self._prepared.get(dialect.name)
        if found is None:
            core = self._core if isinstance(self._core, sa.ClauseElement) else self._core(dialect.name)
            unpack = None
            if self._packed and dialect.name == "sqlite":
                core, unpack = _packed(core)
            found = self._prepared[dialect.name] = Prepared(core, self._names, dialect, unpack)
        return found


class Prepared:
    """A statement in the words of one kind of database."""

    def __init__(
        self, core: sa.ClauseElement, names: Sequence[str], dialect: sa.Dialect, unpack: sqlite.Unpack | None = None
    ) -> None:
        self.unpack = unpack
        compiled = core.compile(dialect=dialect, column_keys=names if isinstance(core, sa.Insert) else None)
        if not isinstance(compiled, SQLCompiler):
            raise TypeError("not a statement that takes parameters")
        self.sql = str(compiled)
        self.returns_rows = isinstance(core, sa.SelectBase) or bool(compiled.effective_returning)
        places = compiled.positiontup or []
        # What the statement says itself, such as a state, comes after what it is given.
        constants = [name for name in dict.fromkeys(places) if name not in names]
        self._constants = tuple(_constant(compiled, name, dialect) for name in constants)
        order = [(*names, *constants).index(name) for name in places]
        self._is_in_order = order == list(range(len(names)))
        self._in_order = _getter(order)
        self._lists = [
            (n, compiled.binds[name].type.dialect_impl(dialect).bind_processor(dialect))
            for n, name in enumerate(places)
            if isinstance(compiled.binds[name].type, Ids)
        ]
        row = f"({', '.join('?' * len(places))})"
        self._before, found, self._after = self.sql.partition(f" VALUES {row}")
        self._row = row if found and isinstance(core, sa.Insert) else None
        #: for a number of rows, the words for all of them
        self._words: dict[int, str] = {}

    def rows(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Rows as the driver takes them."""
        if not self._is_in_order:
            rows = [self._in_order((*row, *self._constants)) for row in rows]
        for place, process in self._lists:
            if process is not None:
                rows = [(*row[:place], process(row[place]), *row[place + 1 :]) for row in rows]
        return rows

    def executions(self, rows: Sequence[Row]) -> Iterator[tuple[str, Row]]:
        """Rows as SQLite takes them: many in one INSERT, so that it is not begun and ended for each.

        The thread that executes gives the interpreter back and asks for it again each time, and has to wait for it.
        """
        rows = self.rows(rows)
        if self._row is None:
            for row in rows:
                yield self.sql, row
            return
        start = 0
        while start < len(rows):
            count = min(MAX_ROWS, 1 << (len(rows) - start).bit_length() - 1)
            yield self._several(count), list(chain.from_iterable(rows[start : start + count]))
            start += count

    def _several(self, count: int) -> str:
        words = self._words.get(count)
        if words is None:
            words = f"{self._before} VALUES {', '.join([self._row or ''] * count)}{self._after}"
            self._words[count] = words
        return words


def _packed(core: sa.ClauseElement) -> tuple[sa.ClauseElement, sqlite.Unpack]:
    """A SELECT whose only row has all rows of another as JSON, and what makes them of it."""
    if not isinstance(core, sa.SelectBase):
        raise TypeError("only what is selected can be packed")
    columns = core.subquery("found").c
    # JSON has no bytes.
    binary = [n for n, column in enumerate(columns) if isinstance(column.type, sa.LargeBinary)]
    values = [
        sa.case((column.is_not(None), sa.func.hex(column))) if n in binary else column
        for n, column in enumerate(columns)
    ]

    def unpack(packed: list[Any]) -> list[Any]:
        rows = [row for (text,) in packed for row in _decode(text)]
        for row in rows if binary else ():
            for n in binary:
                if row[n] is not None:
                    row[n] = bytes.fromhex(row[n])
        return [tuple(row) for row in rows]

    return sa.select(sa.func.json_group_array(sa.func.json_array(*values))), unpack


def _constant(compiled: SQLCompiler, name: str, dialect: sa.Dialect) -> Any:
    bind = compiled.binds[name]
    process = bind.type.dialect_impl(dialect).bind_processor(dialect)
    value = bind.effective_value
    return value if process is None else process(value)


def _getter(order: Sequence[int]) -> Callable[[Row], Row]:
    if len(order) > 1:
        return itemgetter(*order)
    return lambda row: tuple(row[n] for n in order)


# --- execution --------------------------------------------------------------------------------------------


async def run(connection: AsyncConnection, *steps: Step) -> list[list[Any]]:
    """Execute statements in this order, on SQLite in one visit to its thread. Answers the rows of each, as tuples."""
    if connection.dialect.name == "sqlite":
        answers: list[list[Any]] = await driver_of(connection).run(_for_sqlite(connection, steps))
        return answers
    found: list[list[Any]] = []
    for statement, rows in steps:
        prepared = statement.prepared(connection.dialect)
        known = prepared.rows(rows(found) if callable(rows) else rows)
        found.append(await _execute(connection, prepared, [tuple(row) for row in known]))
    return found


async def leave(connection: AsyncConnection, *steps: Step, check: Check | None = None) -> None:
    """Execute statements whose rows nobody waits for: on SQLite only with what follows, at the latest with COMMIT.

    `check` is told how many rows the last one changed or found, and which it found; what it raises stops what follows.
    """
    if connection.dialect.name == "sqlite":
        driver_of(connection).leave(_for_sqlite(connection, steps), check)
        return
    if check is None:
        await run(connection, *steps)
        return
    *before, last = steps
    await run(connection, *before)
    check(*await _seen(connection, last))


def driver_of(connection: AsyncConnection) -> Any:
    """The driver's own connection."""
    return connection.sync_connection.connection.driver_connection  # type: ignore[union-attr]  # it is open


def _for_sqlite(connection: AsyncConnection, steps: Iterable[Step]) -> list[sqlite.Step]:
    return [_one_for_sqlite(statement.prepared(connection.dialect), rows) for statement, rows in steps]


def _one_for_sqlite(statement: Prepared, rows: Sequence[Row] | Following) -> sqlite.Step:
    if callable(rows):
        return sqlite.Step(lambda answers: list(statement.executions(rows(answers))), statement.unpack)
    return sqlite.Step(list(statement.executions(rows)), statement.unpack)


async def _execute(connection: AsyncConnection, statement: Prepared, rows: list[tuple[Any, ...]]) -> list[Any]:
    if statement.returns_rows:
        return [found for row in rows for found in await connection.exec_driver_sql(statement.sql, row)]
    if rows:
        await connection.exec_driver_sql(statement.sql, rows)
    return []


async def _seen(connection: AsyncConnection, step: Step) -> tuple[int, list[Any]]:
    """Execute a statement with each row; how many rows of the database it changed or found, and which it found."""
    statement, rows = step
    prepared = statement.prepared(connection.dialect)
    if prepared.returns_rows or callable(rows):
        [found] = await run(connection, step)
        return len(found), found
    changed = [(await connection.exec_driver_sql(prepared.sql, tuple(row))).rowcount for row in prepared.rows(rows)]
    return sum(changed), []
