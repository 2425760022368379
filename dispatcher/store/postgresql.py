"""PostgreSQL: what a DATABASE_URL means, how a connection is made, and what the codes of its errors say.

The URL is libpq's (postgresql.org/docs/current/libpq-connect.html), as every operator and every provider of databases
writes it; asyncpg reads it, TLS and several hosts included. What it would hand on to the server, and the server
refuse, is taken out here.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from dispatcher.errors import ConfigError, StoreUnavailable

#: seconds to wait for a connection, where the URL has no `connect_timeout`
CONNECT_TIMEOUT = 10.0
#: seconds to wait for one of our own that is in use
POOL_TIMEOUT = 30.0
#: under which name the server shows our connections
APPLICATION = "webhook-dispatcher"
#: parameters that steer libpq's own client and mean nothing to another
_LIBPQ_ONLY = frozenset(
    {
        "channel_binding", "client_encoding", "fallback_application_name", "gssencmode", "keepalives",
        "keepalives_count", "keepalives_idle", "keepalives_interval", "load_balance_hosts", "require_auth",
        "sslcompression", "sslsni", "tcp_user_timeout",
    }
)  # fmt: skip

#: SQLSTATEs, or their classes, that speak of the moment: another try may succeed (appendix A of its manual)
_PASSING = ("08", "25006", "53", "55P03", "57", "58")
#: another transaction was at the same rows, and this one had to give way: the same again is likely to succeed
_CONTENDED = frozenset({"40001", "40P01"})
#: the server goes away, or has become one that takes no writes: other connections to it are of no use either
_LEAVING = frozenset({"25006", "57P01", "57P02", "57P03"})
_UNIQUE_VIOLATION = "23505"
#: Unique rows that are looked for before they are made: where one is in the way all the same, another process has made
#: it in this moment, and who looks again finds it.
_LOOKED_FOR = frozenset({"pk_idempotency", "ix_subscriptions_identity"})

#: makes a connection of asyncpg
Connect = Callable[[], Coroutine[Any, Any, Any]]


def is_meant(url: str) -> bool:
    """Whether a URL names a PostgreSQL."""
    return url.partition("://")[0].partition("+")[0] in {"postgresql", "postgres"}


def connector(url: str, *, pgbouncer: bool = False, name: str = APPLICATION) -> Connect:
    """What makes connections to a URL. Raises ConfigError if it is not valid; the connector raises StoreUnavailable."""
    # Only now: it takes its time to load, and SQLite is used without it.
    import asyncpg  # noqa: PLC0415

    dsn, options = _read(url, name)
    if pgbouncer:
        # A prepared statement belongs to one connection of the server, and the next transaction may get another.
        options["statement_cache_size"] = 0

    async def connect() -> Any:
        try:
            return await asyncpg.connect(dsn, **options)
        except (asyncpg.exceptions.ClientConfigurationError, ValueError) as exc:
            raise ConfigError(f"DATABASE_URL is not valid ({type(exc).__name__})") from None
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
            raise StoreUnavailable(f"the database cannot be reached ({type(exc).__name__})") from exc

    return connect


def _read(url: str, name: str) -> tuple[str, dict[str, Any]]:
    """The URL as asyncpg takes it, and further options of its `connect`."""
    try:
        parts = urlsplit(url)
        given = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
        timeout = float(given.pop("connect_timeout", CONNECT_TIMEOUT)) or None
    except ValueError:
        raise ConfigError("DATABASE_URL is not a valid URL") from None
    query = {name: value for name, value in given.items() if name not in _LIBPQ_ONLY}
    query.setdefault("application_name", name)
    # Not `urlunsplit`: a URL without a host, as for a socket, would lose its slashes.
    dsn = f"postgresql://{parts.netloc}{parts.path}?{urlencode(query)}"
    return dsn, {"timeout": timeout}


def engine(
    url: str, *, pool_size: int, isolation_level: str, read_only: bool = False, pgbouncer: bool = False
) -> AsyncEngine:
    """Connections to a URL, whose transactions are of one kind. Raises ConfigError if it is not valid."""
    connect_args: dict[str, Any] = {"async_creator_fn": connector(url, pgbouncer=pgbouncer)}
    if pgbouncer:
        connect_args["prepared_statement_cache_size"] = 0
        connect_args["prepared_statement_name_func"] = lambda: f"dispatcher_{uuid4().hex}"
    made = create_async_engine(
        "postgresql+asyncpg://",
        # Parameters hold sealed secrets and payloads; errors must not carry them into a log.
        hide_parameters=True,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT,
        connect_args=connect_args,
        execution_options={"isolation_level": isolation_level, "postgresql_readonly": read_only},
    )
    sa.event.listen(made.sync_engine, "checkout", _on_checkout)
    sa.event.listen(made.sync_engine, "handle_error", _on_error)
    return made


def _on_checkout(_connection: object, record: sa.pool.ConnectionPoolEntry, _proxy: object) -> None:
    # One that the server has closed meanwhile is replaced, so that nobody's transaction has to find out.
    driver: Any = record.driver_connection
    if driver.is_closed():
        raise sa.exc.DisconnectionError


def _on_error(context: sa.engine.ExceptionContext) -> None:
    code = sqlstate(context.original_exception)
    if code in _LEAVING:
        context.is_disconnect = True
    cause = context.original_exception.__cause__
    if cause is not None and is_error(cause):
        hide_values(cause)


def is_error(error: BaseException) -> bool:
    """Whether an error is the driver's own, as where a statement went to it directly."""
    return type(error).__module__.startswith("asyncpg.")


def hide_values(error: BaseException) -> None:
    """Take out of a driver's error what must not be logged: the server shows the whole row that it refused."""
    if sqlstate(error) is not None:
        error.detail = None  # type: ignore[attr-defined]  # asyncpg's, which has one


def sqlstate(error: BaseException | None) -> str | None:
    """The code of a server's error; None if it is none."""
    return getattr(error, "sqlstate", None)


def is_passing(error: BaseException | None) -> bool:
    """Whether an error speaks of the moment, not of the statement."""
    code = sqlstate(error)
    if code is None:
        return error is not None and is_error(error) and "connection is closed" in str(error)
    return code.startswith(_PASSING)


def is_contended(error: BaseException | None) -> bool:
    """Whether another transaction was in the way."""
    code = sqlstate(error)
    if code == _UNIQUE_VIOLATION and error is not None:
        # SQLAlchemy's version of an error has asyncpg's as its cause.
        return getattr(error if is_error(error) else error.__cause__, "constraint_name", None) in _LOOKED_FOR
    return code in _CONTENDED
