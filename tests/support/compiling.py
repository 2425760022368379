"""Statements are compiled once in each process of the tests, and not again for each new database.

SQLAlchemy keeps what it compiled by engine and dialect, and each store of a test has new ones. To compile takes a third
of what such tests do. What a statement is compiled to depends on the kind of database alone: all of ours are of one
version and one driver. Servers are processes of their own, and compile what they need.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy.engine import Dialect, Engine
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.util import LRUCache

#: statements: more than there are
SIZE = 4_000


def _kind(dialect: Dialect) -> tuple[Any, ...]:
    return type(dialect), dialect.paramstyle, dialect.server_version_info


def _is_same(dialect: DefaultDialect, other: object) -> bool:
    return isinstance(other, DefaultDialect) and _kind(dialect) == _kind(other)


@contextlib.contextmanager
def once() -> Iterator[None]:
    """Within the block, engines share what was compiled."""
    compiled: LRUCache[Any, Any] = LRUCache(SIZE)
    ours = property(lambda _engine: compiled, lambda _engine, _own: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "_compiled_cache", ours, raising=False)
        patch.setattr(DefaultDialect, "__eq__", _is_same)
        patch.setattr(DefaultDialect, "__hash__", lambda dialect: hash(type(dialect)))
        yield
