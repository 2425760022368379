"""The tables of accounts, tasks, deliveries and what belongs to them.

Migrations create these (`dispatcher/store/migrations`); a test holds the two together. Ids are UUIDv7 in hex,
moments are milliseconds by the database's clock. Of a callback URL the origin stands in clear, the rest is encrypted.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from dispatcher.models import LIVE_STATES
from subscriptions.schema import Id, Instant, Sealed, metadata

#: One row: which installation this database belongs to, and a canary that only its keyring opens.
installation = sa.Table(
    "installation",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("issuer", Id, nullable=False),
    sa.Column("canary", Sealed, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
)

accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("default_secret", Sealed),
    sa.Column("schemes", sa.JSON(none_as_null=True)),
    sa.Column("retry_schedule", sa.JSON(none_as_null=True)),
    sa.Column("created_at", Instant, nullable=False),
)

#: API tokens that were issued. The tokens themselves are never stored.
tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("jti", Id, primary_key=True),
    sa.Column("account", sa.String(64), nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("note", sa.String(200)),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("expires_at", Instant),
    sa.Column("revoked_at", Instant),
)

#: Who changed tokens and settings.
audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("account", sa.String(64), nullable=False),
    sa.Column("actor", sa.String(100), nullable=False),
    sa.Column("action", sa.String(50), nullable=False),
    sa.Column("subject", sa.String(100), nullable=False),
    sa.Column("at", Instant, nullable=False),
)

#: Worker processes. Leases hang on a session; when it is over, they are free.
sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("host", sa.String(255), nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("started_at", Instant, nullable=False),
    sa.Column("expires_at", Instant, nullable=False),
    #: the last batch this process committed, to be looked up when a COMMIT got no answer
    sa.Column("last_batch", Id),
)

tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("account", sa.String(64), nullable=False),
    sa.Column("type", sa.String(100), nullable=False),
    sa.Column("state", sa.String(12), nullable=False),
    sa.Column("body_mode", sa.String(24), nullable=False),
    sa.Column("metadata", sa.LargeBinary),
    sa.Column("traceparent", sa.String(55)),
    sa.Column("error", sa.LargeBinary),
    #: the latest delivery of its result
    sa.Column("delivery_id", Id, nullable=False),
    # its work: lease and tries
    sa.Column("due_at", Instant),
    #: how many times it was leased; the fencing token of the current lease
    sa.Column("attempt", sa.Integer, nullable=False),
    #: tries that failed
    sa.Column("failures", sa.Integer, nullable=False),
    #: leases in a row that ended without a report
    sa.Column("interruptions", sa.Integer, nullable=False),
    sa.Column("session", Id),
    #: end of a lease that was given to a processor outside our processes
    sa.Column("lease_until", Instant),
    # its callback
    sa.Column("callback_url", Sealed),
    sa.Column("callback_secret", Sealed),
    sa.Column("callback_headers", Sealed),
    sa.Column("callback_origin", sa.String(300), nullable=False),
    sa.Column("callback_fingerprint", sa.String(16), nullable=False),
    sa.Column("callback_token", sa.String(6), nullable=False),
    sa.Column("schemes", sa.JSON(none_as_null=True)),
    #: end of the window in which the callback can be used
    sa.Column("window_end", Instant),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("finished_at", Instant),
)
sa.Index("ix_tasks_account_id", tasks.c.account, tasks.c.id)


def _partial_index(name: str, *columns: sa.Column[Any], where: sa.ColumnElement[bool]) -> None:
    sa.Index(name, *columns, sqlite_where=where, postgresql_where=where)


def _in_state(column: sa.Column[Any], *states: str) -> sa.ColumnElement[bool]:
    # Written out, not bound: a partial index is used only for a query that says the same words.
    literals: list[sa.ColumnElement[str]] = [sa.literal_column(f"'{state}'") for state in states]
    return column == literals[0] if len(literals) == 1 else column.in_(literals)


#: A task waits for a processor.
is_queued = _in_state(tasks.c.state, "queued")
#: A processor holds a task's lease.
is_processing = _in_state(tasks.c.state, "processing")
_partial_index("ix_tasks_queued", tasks.c.type, tasks.c.due_at, where=is_queued)
_partial_index("ix_tasks_processing", tasks.c.lease_until, where=is_processing)
_partial_index("ix_tasks_window", tasks.c.window_end, where=tasks.c.callback_url.is_not(None))

#: The queue. Kept narrow: what is only needed to send or to show stands in `tasks` and `bodies`.
deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("account", sa.String(64), nullable=False),
    sa.Column("task_id", Id, nullable=False),
    sa.Column("wire_id", Id, nullable=False),
    sa.Column("redelivery_of", Id),
    sa.Column("lane", sa.String(370), nullable=False),
    sa.Column("state", sa.String(10), nullable=False),
    sa.Column("mark", sa.String(10)),
    sa.Column("reason", sa.String(20)),
    #: how many times it was leased; the fencing token, and the number of the current attempt
    sa.Column("attempt", sa.Integer, nullable=False),
    #: attempts that failed: the place in the retry schedule
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("last_outcome", sa.String(20)),
    #: how many times in a row `last_outcome` came
    sa.Column("repeats", sa.Integer, nullable=False),
    #: when it may be leased; none while its body is not known yet
    sa.Column("due_at", Instant),
    sa.Column("session", Id),
    #: its stored body; a redelivery shares the first one's
    sa.Column("body_id", Id),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("finished_at", Instant),
)
sa.Index("ix_deliveries_account_id", deliveries.c.account, deliveries.c.id)
sa.Index("ix_deliveries_task_id", deliveries.c.task_id)
#: A delivery waits to be leased: now or later. One whose body is not known yet does not.
is_waiting = sa.and_(_in_state(deliveries.c.state, "pending"), deliveries.c.due_at.is_not(None))
#: A delivery can still move.
is_live = _in_state(deliveries.c.state, *LIVE_STATES)
_partial_index("ix_deliveries_due", deliveries.c.lane, deliveries.c.due_at, where=is_waiting)
_partial_index("ix_deliveries_live", deliveries.c.state, deliveries.c.account, where=is_live)

#: Payloads (under their task's id) and exact bodies to send (under their first delivery's id).
bodies = sa.Table(
    "bodies",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("content", sa.LargeBinary, nullable=False),
    sa.Column("content_type", sa.String(100), nullable=False),
    #: further headers that belong to this body, such as CloudEvents attributes: [[name, value], …]
    sa.Column("headers", sa.JSON(none_as_null=True)),
)

attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("delivery_id", Id, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("outcome", sa.String(20), nullable=False),
    sa.Column("status", sa.Integer),
    sa.Column("error", sa.String(300)),
    sa.Column("started_at", Instant, nullable=False),
    sa.Column("duration_ms", sa.Float, nullable=False),
    sa.Column("retry_at", Instant),
    #: the status and headers came, but the body broke or was cut at our limit
    sa.Column("truncated", sa.Boolean, nullable=False),
    sa.Column("response_headers", sa.JSON(none_as_null=True)),
    sa.Column("response_body", sa.Text),
    sa.Column("timing", sa.JSON(none_as_null=True)),
)

#: Answers given under an Idempotency-Key.
idempotency = sa.Table(
    "idempotency",
    metadata,
    sa.Column("account", sa.String(64), primary_key=True),
    sa.Column("route", sa.String(100), primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    #: keyed digest of the request's body
    sa.Column("fingerprint", sa.LargeBinary(32), nullable=False),
    sa.Column("answer", sa.LargeBinary, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
)
sa.Index("ix_idempotency_created_at", idempotency.c.created_at)

#: Deliveries counted as they are accepted and as they end, apart from the rows themselves, so that the two
#: can be held against each other. `slot` spreads one account's counts over processes; a sum adds them up.
ledger = sa.Table(
    "ledger",
    metadata,
    sa.Column("account", sa.String(64), primary_key=True),
    sa.Column("slot", sa.Integer, primary_key=True),
    #: `accepted`, or a terminal state
    sa.Column("state", sa.String(10), primary_key=True),
    sa.Column("count", sa.BigInteger, nullable=False),
)
