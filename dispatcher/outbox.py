"""Publish events and submit tasks by your own transaction, for a service whose data are in the same PostgreSQL.

    with Session(engine) as session, session.begin():
        session.add(order)
        publish_event(session, "acme", "order.paid", {"order": order.number})

It is delivered if the transaction commits, and never seen if it does not. What is written is one row of the table
`outbox`, which a worker turns into an event or a task; nothing else of the dispatcher is needed here, and no key that
opens anything: a callback's URL, secret and headers are sealed with the installation's public key.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn, TypedDict, Unpack, overload

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from dispatcher.api.checking import Checker, check_key, check_schemes, check_traceparent
from dispatcher.api.problems import invalid
from dispatcher.egress import EgressPolicy
from dispatcher.errors import OutboxRefused, Problem
from dispatcher.ids import ACCOUNT_NAME, new_id
from dispatcher.limits import MAX_AROUND_PAYLOAD, Limits
from dispatcher.parcels import CHANNEL, NEWS, SEALED_FIELDS, Kind, info_of, request_of
from dispatcher.public_keys import PublicKey, SealingError

__all__ = ["EgressPolicy", "Limits", "Outbox", "OutboxRefused", "publish_event", "submit_task"]

_encode = msgspec.json.encode
#: the database's clock, milliseconds since the Unix epoch
_NOW = sa.cast(sa.extract("epoch", sa.func.clock_timestamp()) * sa.literal_column("1000"), sa.BigInteger)
#: in a FROM clause: tells the workers, once the transaction commits
_TELL = sa.func.pg_notify(CHANNEL, NEWS).alias("told")
#: what a caller writes of a row
_COLUMNS: dict[str, sa.types.TypeEngine[Any]] = {
    "id": sa.String(),
    "account": sa.String(),
    "kind": sa.String(),
    "fields": sa.LargeBinary(),
    "payload": sa.LargeBinary(),
    "sealed": sa.LargeBinary(),
    "idempotency_key": sa.String(),
    "traceparent": sa.String(),
}


class EventOptions(TypedDict, total=False):
    """What may be said of an event, as in `POST /events`."""

    #: your id of it: published again within 24 hours, it is the same event
    id: str | None
    subject: str | None
    ordering_key: str | None
    #: W3C trace context, passed on with the deliveries
    traceparent: str | None


class TaskOptions(TypedDict, total=False):
    """What may be said of a task, as in `POST /tasks`."""

    type: str
    deliver_before: datetime | None
    secret: str | None
    schemes: Sequence[str] | None
    body: str | None
    headers: Mapping[str, str] | None
    metadata: Mapping[str, Any] | None
    #: submitted again with the same key within 24 hours, it is the same task
    idempotency_key: str | None
    #: W3C trace context, passed on with the deliveries
    traceparent: str | None


class Outbox:
    """What a publisher knows of the installation. `publish_event` and `submit_task` below assume its defaults."""

    def __init__(
        self,
        *,
        public_key: str | None = None,
        schema: str | None = None,
        notify: bool = True,
        limits: Limits = Limits(),  # noqa: B008 - it is frozen
        policy: EgressPolicy = EgressPolicy(),  # noqa: B008 - it is frozen
    ) -> None:
        """`public_key` is what `dispatcher outbox key` prints; without it, the table is asked with each task.

        `schema` is where the tables are, if not on the search path. Without `notify` workers find out by themselves,
        within a second: for two-phase commit, which does not go with NOTIFY. `limits` and `policy` are the
        installation's, where its operator has changed them: what they refuse, is refused here already.

        Raises OutboxRefused.
        """
        try:
            self._public_key = None if public_key is None else PublicKey.parse(public_key)
        except SealingError as exc:
            raise OutboxRefused(f"public_key: {exc}") from None
        self._checker = Checker(limits=limits, policy=policy)
        rows = sa.table("outbox", *(sa.column(name) for name in (*_COLUMNS, "created_at")), schema=schema)
        # Cast, since a driver may not say of None what it is none of.
        given = (sa.cast(sa.bindparam(name, type_=kind), kind) for name, kind in _COLUMNS.items())
        row = sa.select(*given, _NOW)
        self._insert = sa.insert(rows).from_select(
            (*_COLUMNS, "created_at"), row.select_from(_TELL) if notify else row, include_defaults=False
        )
        keys = sa.table("outbox_keys", sa.column("id"), sa.column("public_key", sa.LargeBinary), schema=schema)
        self._newest_key = sa.select(keys.c.public_key).order_by(keys.c.id.desc()).limit(1)

    @overload
    def publish_event(
        self, where: Connection | Session, account: str, type: str, payload: object, **options: Unpack[EventOptions]
    ) -> str: ...

    @overload
    def publish_event(
        self,
        where: AsyncConnection | AsyncSession,
        account: str,
        type: str,
        payload: object,
        **options: Unpack[EventOptions],
    ) -> Coroutine[Any, Any, str]: ...

    def publish_event(
        self,
        where: Connection | Session | AsyncConnection | AsyncSession,
        account: str,
        type: str,  # noqa: A002 - the field's name
        payload: object,
        **options: Unpack[EventOptions],
    ) -> str | Coroutine[Any, Any, str]:
        """Publish an event to the account's subscriptions, once the transaction commits. To be awaited if async.

        `payload` as bytes is JSON, delivered as it is; anything else is written as JSON. Returns the row's id. Raises
        OutboxRefused, and then nothing is written.
        """
        fields = {"type": type, **_given(options)}
        trace = fields.pop("traceparent", None)
        with _refusing():
            row = _Row(Kind.EVENT, account, _part(fields), _payload(payload), trace=trace)
            self._checker.event_request(request_of(row.fields, row.payload))
        return self._written(where, lambda _connection: row.values(None))

    @overload
    def submit_task(
        self,
        where: Connection | Session,
        account: str,
        callback_url: str,
        payload: object,
        **options: Unpack[TaskOptions],
    ) -> str: ...

    @overload
    def submit_task(
        self,
        where: AsyncConnection | AsyncSession,
        account: str,
        callback_url: str,
        payload: object,
        **options: Unpack[TaskOptions],
    ) -> Coroutine[Any, Any, str]: ...

    def submit_task(
        self,
        where: Connection | Session | AsyncConnection | AsyncSession,
        account: str,
        callback_url: str,
        payload: object,
        **options: Unpack[TaskOptions],
    ) -> str | Coroutine[Any, Any, str]:
        """Submit a task whose result goes to `callback_url`, once the transaction commits. To be awaited if async.

        `payload` as bytes is JSON, delivered as it is; anything else is written as JSON. Returns the row's id. Raises
        OutboxRefused, and then nothing is written.
        """
        fields = {"callback_url": callback_url, **_given(options)}
        trace, key = fields.pop("traceparent", None), fields.pop("idempotency_key", None)
        with _refusing():
            secret = _part({name: fields.pop(name) for name in sorted(SEALED_FIELDS & fields.keys())})
            row = _Row(Kind.TASK, account, _part(fields), _payload(payload), trace=trace, key=key)
            request = self._checker.task_request(request_of(row.fields, row.payload, secret))
            # how long a processor takes is not known here
            callback = self._checker.destination(request, timeout=0.0)
            self._checker.metadata(request.metadata, "/metadata")
            if callback.schemes is not None:
                check_schemes(callback.schemes, callback.secret, "/schemes")
        return self._written(where, lambda connection: row.values(self._sealed(connection, row, secret)))

    def _sealed(self, connection: Connection, row: _Row, secret: bytes) -> bytes:
        try:
            key = self._public_key or self._key_in_table(connection)
            return key.seal(secret, info_of(kind=row.kind, account=row.account, row=row.id))
        except SealingError as exc:
            raise OutboxRefused(f"public_key: {exc}") from None

    def _key_in_table(self, connection: Connection) -> PublicKey:
        raw = connection.scalar(self._newest_key)
        if raw is None:
            raise OutboxRefused("the installation has no public key yet: a server has to start on this database")
        return PublicKey(bytes(raw))

    def _written(
        self,
        where: Connection | Session | AsyncConnection | AsyncSession,
        values: Callable[[Connection], dict[str, Any]],
    ) -> str | Coroutine[Any, Any, str]:
        def write(connection: Connection | Session) -> str:
            return self._write(connection, values)

        if isinstance(where, AsyncConnection | AsyncSession):
            return where.run_sync(write)
        if isinstance(where, Connection | Session):
            return write(where)
        raise TypeError("give a SQLAlchemy Connection, Session, AsyncConnection or AsyncSession")

    def _write(self, where: Connection | Session, values: Callable[[Connection], dict[str, Any]]) -> str:
        connection = where.connection() if isinstance(where, Session) else where
        if connection.dialect.name != "postgresql":
            raise OutboxRefused("the outbox is a table of PostgreSQL: a SQLite file belongs to the dispatcher alone")
        row = values(connection)
        connection.execute(self._insert, row)
        return str(row["id"])


class _Row:
    """A row that is to be written."""

    def __init__(
        self, kind: Kind, account: str, fields: bytes, payload: bytes, *, trace: str | None, key: str | None = None
    ) -> None:
        if not ACCOUNT_NAME.match(account):
            raise invalid("/account", "must have 1 to 64 letters, digits, dots, dashes and underscores")
        if trace is not None:
            check_traceparent(trace, "/traceparent")
        if key is not None:
            check_key(key, "/idempotency_key")
        self.id = new_id()
        self.kind = kind.value
        self.account = account
        self.fields = fields
        self.payload = payload
        self._trace = trace
        self._key = key

    def values(self, sealed: bytes | None) -> dict[str, Any]:
        return {
            "id": self.id,
            "account": self.account,
            "kind": self.kind,
            "fields": self.fields,
            "payload": self.payload,
            "sealed": sealed,
            "idempotency_key": self._key,
            "traceparent": self._trace,
        }


class _refusing:  # noqa: N801 - a context manager that reads as a sentence
    """Says what was wrong in the words of a function's caller."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, Problem):
            raise OutboxRefused.of(error) from None


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _part(fields: Mapping[str, Any]) -> bytes:
    """Fields as one part of a row."""
    written = {name: msgspec.Raw(_as_json(value, name)) for name, value in fields.items()}
    part = _encode(written)
    if len(part) > MAX_AROUND_PAYLOAD:
        _fail(max(written, key=lambda name: len(bytes(written[name]))), "must be smaller")
    return part


def _as_json(value: object, field: str) -> bytes:
    if isinstance(value, datetime):
        value = value.isoformat()
    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError):
        _fail(field, "must be what JSON can hold")


def _payload(payload: object) -> bytes:
    if isinstance(payload, bytes | bytearray | memoryview):
        return bytes(payload)
    return _as_json(payload, "payload")


def _fail(field: str, detail: str) -> NoReturn:
    raise invalid(f"/{field}", detail)


_default = Outbox()
publish_event = _default.publish_event
submit_task = _default.submit_task
