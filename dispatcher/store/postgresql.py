"""PostgreSQL: what a DATABASE_URL means, how a connection is made, and what the codes of its errors say.

The URL is libpq's (postgresql.org/docs/current/libpq-connect.html), as every operator and every provider of databases
writes it; asyncpg reads it, TLS included. What asks for something that asyncpg does not do is refused here: a
connection that is less safe than its URL says is worse than none. A server that has gone without a word is noticed by
what waits for it (`command_timeout`), and by the kernel where nothing does.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from dispatcher.errors import ConfigError, StoreUnavailable

#: seconds to wait for a connection, where the URL has no `connect_timeout`
CONNECT_TIMEOUT = 10.0
#: seconds to wait for the answer to a statement, where nobody says how long
COMMAND_TIMEOUT = 30.0
#: seconds to wait for one of our own that is in use
POOL_TIMEOUT = 30.0
#: under which name the server shows our connections
APPLICATION = "webhook-dispatcher"
#: parameters of libpq that asyncpg knows nothing of, and the values that ask for nothing: others are refused
_HARMLESS: Mapping[str, frozenset[str]] = {
    "channel_binding": frozenset({"disable", "prefer"}),
    "client_encoding": frozenset({"auto", "utf8", "utf-8"}),
    "gssdelegation": frozenset({"0"}),
    "gssencmode": frozenset({"disable", "prefer"}),
    "hostaddr": frozenset(),
    "load_balance_hosts": frozenset({"disable"}),
    "replication": frozenset({"0", "false", "no", "off"}),
    "require_auth": frozenset(),
    "requirepeer": frozenset(),
    "servicefile": frozenset(),
    "sslcertmode": frozenset({"allow"}),
    # libpq itself does not compress any more
    "sslcompression": frozenset({"0", "1"}),
    "sslcrldir": frozenset(),
    "sslsni": frozenset({"1"}),
}
#: seconds without an answer after which the kernel asks whether the server's machine is there, where nothing else asks
_KEEPALIVES_IDLE = 15
#: seconds between its questions, and how many get no answer before the connection is over
_KEEPALIVES_INTERVAL, _KEEPALIVES_COUNT = 5, 3
#: the server's setting that ends a transaction in which nothing is done, milliseconds
_IDLE = "idle_in_transaction_session_timeout"

#: SQLSTATEs, or their classes, that speak of the moment: another try may succeed (appendix A of its manual)
_PASSING = ("08", "25006", "25P03", "53", "55P03", "57", "58")
#: another transaction was at the same rows, and this one had to give way: the same again is likely to succeed
_CONTENDED = frozenset({"40001", "40P01"})
#: the server goes away, or has become one that takes no writes: other connections to it are of no use either
_LEAVING = frozenset({"25006", "57P01", "57P02", "57P03"})
#: what the system says of a connection that its network has lost
_CUT = frozenset({errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH})
_UNIQUE_VIOLATION = "23505"
#: Unique rows that are looked for before they are made: where one is in the way all the same, another process has made
#: it in this moment, and who looks again finds it.
_LOOKED_FOR = frozenset({"pk_idempotency", "ix_subscriptions_identity"})

#: makes a connection of asyncpg
Connect = Callable[[], Coroutine[Any, Any, Any]]


def is_meant(url: str) -> bool:
    """Whether a URL names a PostgreSQL."""
    return url.partition("://")[0].partition("+")[0] in {"postgresql", "postgres"}


def connector(
    url: str,
    *,
    pgbouncer: bool = False,
    name: str = APPLICATION,
    command_timeout: float | None = COMMAND_TIMEOUT,
) -> Connect:
    """What makes connections to a URL, each of which waits `command_timeout` seconds for an answer; None: for ever.

    `name` is what the server shows them under, if the URL has none. Raises ConfigError if the URL is not valid, or asks
    for what cannot be had; the connector raises StoreUnavailable.
    """
    # Only now: it takes its time to load, and SQLite is used without it.
    import asyncpg  # noqa: PLC0415

    given = _read(url, name)
    options: dict[str, Any] = {"timeout": given.connect_timeout, "command_timeout": command_timeout}
    if pgbouncer:
        # A prepared statement belongs to one connection of the server, and the next transaction may get another.
        options["statement_cache_size"] = 0
    elif command_timeout is not None:
        # A process that stands still in the middle of a transaction holds its locks no longer than others wait.
        options["server_settings"] = {_IDLE: str(round(command_timeout * 1000 / 2))} | given.server_settings
    #: the one first that took us last
    dsns = list(given.dsns)

    async def connect() -> Any:
        for dsn in tuple(dsns):
            try:
                connection = await asyncpg.connect(dsn, **options)
                _watch(connection, given, command_timeout)
            except (asyncpg.exceptions.ClientConfigurationError, ValueError) as exc:
                raise ConfigError(f"DATABASE_URL is not valid ({type(exc).__name__})") from None
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as exc:
                failed = exc
                continue
            if dsns[0] != dsn:
                dsns.sort(key=dsn.__ne__)
            return connection
        raise StoreUnavailable(f"the database cannot be reached ({type(failed).__name__})") from failed

    return connect


@dataclass(frozen=True, kw_only=True)
class _Given:
    """What a URL says."""

    #: one for each host, as asyncpg takes it: it would give all of them together the time that each is to have
    dsns: tuple[str, ...]
    #: seconds for each host; None: as long as it takes
    connect_timeout: float | None
    #: whether the kernel is to ask after the server's machine: see above
    keepalives: bool
    keepalives_idle: int
    keepalives_interval: int
    keepalives_count: int
    #: milliseconds for which what was sent may stay unacknowledged; 0: as long as a statement may take
    tcp_user_timeout: int
    #: settings of the server that we would choose otherwise
    server_settings: dict[str, str]


def _read(url: str, name: str) -> _Given:
    try:
        parts = urlsplit(url)
        given = {name: value for name, value in parse_qsl(parts.query, strict_parsing=bool(parts.query)) if value}
        connect_timeout = float(given.pop("connect_timeout", CONNECT_TIMEOUT)) or None
        # As libpq has it, 0 leaves it to the system; here it leaves it to us.
        keepalives = int(given.pop("keepalives", 1))
        idle = int(given.pop("keepalives_idle", 0)) or _KEEPALIVES_IDLE
        interval = int(given.pop("keepalives_interval", 0)) or _KEEPALIVES_INTERVAL
        count = int(given.pop("keepalives_count", 0)) or _KEEPALIVES_COUNT
        user_timeout = int(given.pop("tcp_user_timeout", 0))
    except ValueError:
        raise ConfigError("DATABASE_URL is not a valid URL") from None
    for parameter, harmless in _HARMLESS.items():
        if parameter in given and given.pop(parameter).lower() not in harmless:
            raise ConfigError(
                f"DATABASE_URL has {parameter} with a value that this program cannot keep to; take it out if you can do"
                " without it"
            )
    fallback = given.pop("fallback_application_name", name)
    given.setdefault("application_name", fallback)
    return _Given(
        dsns=tuple(_each_host(parts, given)),
        connect_timeout=connect_timeout,
        keepalives=bool(keepalives),
        keepalives_idle=idle,
        keepalives_interval=interval,
        keepalives_count=count,
        tcp_user_timeout=user_timeout,
        server_settings={setting: given[setting] for setting in (_IDLE,) if setting in given},
    )


def _each_host(parts: SplitResult, given: dict[str, str]) -> Iterator[str]:
    """The URL for each of its hosts, which stand in front or among the parameters."""
    login, at, places = parts.netloc.rpartition("@")
    if places or "host" not in given:
        ways = [(place, given) for place in places.split(",")]
    else:
        hosts, ports = given["host"].split(","), given.get("port", "").split(",")
        if len(ports) not in {1, len(hosts)}:
            raise ConfigError("DATABASE_URL has another number of ports than of hosts")
        ways = [("", given | {"host": host, "port": ports[n % len(ports)]}) for n, host in enumerate(hosts)]
    if len(ways) > 1:
        # One that takes no writes is of no use to us, and would be asked first for ever once it has taken us.
        ways = [(place, {"target_session_attrs": "read-write"} | query) for place, query in ways]
    for place, query in ways:
        told = urlencode({name: value for name, value in query.items() if value})
        # Not `urlunsplit`: a URL without a host, as for a socket, would lose its slashes.
        yield f"postgresql://{login}{at}{place}{parts.path}?{told}"


def _watch(connection: Any, given: _Given, command_timeout: float | None) -> None:
    """Have the kernel end a connection whose other end has gone without a word."""
    # asyncpg has no public way to a connection's socket.
    made: socket.socket = connection._transport.get_extra_info("socket")
    if made.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    options = {"TCP_USER_TIMEOUT": given.tcp_user_timeout or round((command_timeout or 0) * 1000)}
    if given.keepalives:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        options["TCP_KEEPIDLE"] = given.keepalives_idle
        options["TCP_KEEPINTVL"] = given.keepalives_interval
        options["TCP_KEEPCNT"] = given.keepalives_count
    for name, value in options.items():
        # Not every system has all of them.
        if hasattr(socket, name):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def engine(
    url: str,
    *,
    pool_size: int,
    isolation_level: str,
    read_only: bool = False,
    pgbouncer: bool = False,
    command_timeout: float | None = COMMAND_TIMEOUT,
) -> AsyncEngine:
    """Connections to a URL, whose transactions are of one kind. Raises ConfigError if it is not valid."""
    connect_args: dict[str, Any] = {
        "async_creator_fn": connector(url, pgbouncer=pgbouncer, command_timeout=command_timeout)
    }
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
    if sqlstate(context.original_exception) in _LEAVING or is_cut(context.original_exception):
        context.is_disconnect = True
    cause = context.original_exception.__cause__
    if cause is not None and is_error(cause):
        hide_values(cause)


def is_error(error: BaseException) -> bool:
    """Whether an error is the driver's own, as where a statement went to it directly."""
    return type(error).__module__.startswith("asyncpg.")


def is_cut(error: BaseException) -> bool:
    """Whether an error is what the system, or a timeout, says of a connection: asyncpg hands it on as it is."""
    return isinstance(error, (ConnectionError, TimeoutError)) or (isinstance(error, OSError) and error.errno in _CUT)


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
