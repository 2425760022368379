"""The tables of accounts, tasks, events, deliveries and what belongs to them.

Those of subscriptions and their secrets are in `subscriptions.schema`. Migrations create all of them
(`dispatcher/store/migrations`); a test holds the two together. Ids are UUIDv7 in hex, moments are milliseconds by the
database's clock. Of a callback URL the origin stands in clear, the rest is encrypted.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from dispatcher.models import LIVE_STATES
from subscriptions.schema import Id, Instant, Sealed, metadata, secrets, subscriptions, text

__all__ = ["secrets", "subscriptions"]  # these stand beside ours in every statement

# How PostgreSQL stores a table, where its own way is not the best. No update of a queue's row can be a HOT one, which
# leaves the indexes alone: the state stands in their conditions. So there the dead are to be cleared away soon. By
# default that is when a fifth of a table is dead, and tables that keep weeks of what is over are large: whoever looks
# for what is due would step over millions of them in the indexes.
#: a queue
_QUEUE = {
    "autovacuum_vacuum_scale_factor": 0.01,
    "autovacuum_vacuum_threshold": 1000,
    "autovacuum_analyze_scale_factor": 0.02,
}
#: Few rows, each changed with every commit and in no column that is indexed. With room beside it, a row's next version
#: stands in its page (HOT), and whoever comes by next clears the last one away.
_COUNTERS = {"fillfactor": 20}

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
    sa.Column("id", text(64), primary_key=True),
    sa.Column("default_secret", Sealed),
    sa.Column("schemes", sa.JSON(none_as_null=True)),
    sa.Column("retry_schedule", sa.JSON(none_as_null=True)),
    #: how new subscriptions prove themselves that do not say: `none`, `ping` or `handshake`
    sa.Column("verification", text(9), nullable=False, server_default="none"),
    #: changes to its subscriptions so far
    sa.Column("subscriptions_version", sa.BigInteger, nullable=False, server_default="0"),
    #: the subscription that is told of the others
    sa.Column("operational_id", Id),
    sa.Column("created_at", Instant, nullable=False),
)

#: API tokens that were issued. The tokens themselves are never stored.
tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("jti", Id, primary_key=True),
    sa.Column("account", text(64), nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("note", text(200)),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("expires_at", Instant),
    sa.Column("revoked_at", Instant),
)

#: Who changed tokens and settings.
audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("account", text(64), nullable=False),
    sa.Column("actor", text(100), nullable=False),
    sa.Column("action", text(50), nullable=False),
    sa.Column("subject", text(100), nullable=False),
    sa.Column("at", Instant, nullable=False),
)

#: Worker processes. Leases hang on a session; when it is over, they are free.
sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("host", text(255), nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("started_at", Instant, nullable=False),
    sa.Column("expires_at", Instant, nullable=False),
    #: what the process is for: `all`, `api` or `worker`; and of which version it is
    sa.Column("role", text(6), nullable=False, server_default="all"),
    sa.Column("version", text(40), nullable=False, server_default=""),
    sa.Column("heartbeat_at", Instant),
    #: the last batch this process committed, to be looked up when a COMMIT got no answer
    sa.Column("last_batch", Id),
    postgresql_with=_COUNTERS,
)

#: The paces of subscriptions that have a rate limit, where several processes keep them (`dispatcher.pace`).
paces = sa.Table(
    "paces",
    metadata,
    sa.Column("subscription_id", Id, primary_key=True),
    #: the session that holds it
    sa.Column("session", Id, nullable=False),
    #: the last place that was given out, milliseconds since the epoch and parts of them
    sa.Column("until", sa.Float, nullable=False),
    # It changes often, and no index looks at what changes: room for that on its page.
    postgresql_with={"fillfactor": 50},
)

tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("account", text(64), nullable=False),
    sa.Column("type", text(100), nullable=False),
    sa.Column("state", text(12), nullable=False),
    sa.Column("body_mode", text(24), nullable=False),
    sa.Column("metadata", sa.LargeBinary),
    sa.Column("traceparent", text(55)),
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
    sa.Column("callback_origin", text(300), nullable=False),
    sa.Column("callback_fingerprint", text(16), nullable=False),
    sa.Column("callback_token", text(6), nullable=False),
    sa.Column("schemes", sa.JSON(none_as_null=True)),
    #: end of the window in which the callback can be used
    sa.Column("window_end", Instant),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("finished_at", Instant),
    postgresql_with=_QUEUE,
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
_partial_index(
    "ix_tasks_window_end",
    tasks.c.window_end,
    # Most have none; what decides that stands first.
    where=sa.and_(tasks.c.window_end.is_not(None), tasks.c.callback_url.is_not(None)),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("account", text(64), nullable=False),
    sa.Column("type", text(100), nullable=False),
    #: the id that its publisher gave it
    sa.Column("reference", text(255)),
    sa.Column("subject", text(255)),
    sa.Column("ordering_key", text(255)),
    sa.Column("traceparent", text(55)),
    #: deliveries that it has or will have
    sa.Column("deliveries", sa.Integer, nullable=False),
    sa.Column("state", text(10), nullable=False),
    #: subscriptions that wanted it and do not get it: [[id, reason, detail], …]
    sa.Column("skipped", sa.JSON(none_as_null=True)),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("finished_at", Instant),
)
sa.Index("ix_events_account_id", events.c.account, events.c.id)

#: Events whose deliveries are still being made, and how far.
fan_outs = sa.Table(
    "fan_outs",
    metadata,
    sa.Column("event_id", Id, primary_key=True),
    sa.Column("account", text(64), nullable=False),
    #: how many deliveries it has yet to get, at first
    sa.Column("size", sa.Integer, nullable=False),
    #: how many of them are made
    sa.Column("done", sa.Integer, nullable=False),
    #: steps that it had so far: whoever had fewest is next
    sa.Column("steps", sa.Integer, nullable=False),
    #: the stored body for each form: {mode: id}
    sa.Column("bodies", sa.JSON, nullable=False),
)
sa.Index("ix_fan_outs_steps", fan_outs.c.account, fan_outs.c.steps, fan_outs.c.event_id)

#: For whom they are made. Apart, since it can be long, and a row that changes is written anew as a whole.
fan_out_targets = sa.Table(
    "fan_out_targets",
    metadata,
    sa.Column("event_id", Id, primary_key=True),
    #: ids of the subscriptions that matched at acceptance, 16 bytes each
    sa.Column("ids", sa.LargeBinary, nullable=False),
)

#: characters of a lane's name
LONGEST_LANE = 370

#: The queue. Kept narrow: what is only needed to send or to show stands in `tasks`, `events` and `bodies`.
deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("account", text(64), nullable=False),
    #: the task or the event that it tells of
    sa.Column("source_id", Id, nullable=False),
    #: whom it goes to; none means the task's callback
    sa.Column("subscription_id", Id),
    #: `message`, or what asks an endpoint whether it is there: `ping` or `handshake`
    sa.Column("kind", text(9), nullable=False, server_default="message"),
    sa.Column("wire_id", Id, nullable=False),
    sa.Column("redelivery_of", Id),
    sa.Column("lane", text(LONGEST_LANE), nullable=False),
    sa.Column("state", text(10), nullable=False),
    sa.Column("mark", text(10)),
    sa.Column("reason", text(20)),
    #: how many times it was leased; the fencing token, and the number of the current attempt
    sa.Column("attempt", sa.Integer, nullable=False),
    #: attempts that failed: the place in the retry schedule
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("last_outcome", text(20)),
    #: how many times in a row `last_outcome` came
    sa.Column("repeats", sa.Integer, nullable=False),
    #: when it may be leased; none while its body is not known yet
    sa.Column("due_at", Instant),
    sa.Column("session", Id),
    #: its stored body; a redelivery shares the first one's, and so do all deliveries of an event
    sa.Column("body_id", Id),
    #: its place in order, where there is an order
    sa.Column("seq", sa.BigInteger),
    #: those with the same lane and key keep their order
    sa.Column("order_key", text(255)),
    #: it has disabled its subscription once; it will not do so again
    sa.Column("refused", sa.Boolean, nullable=False, server_default=sa.false()),
    #: its next attempt is signed with the older secret
    sa.Column("other_secret", sa.Boolean, nullable=False, server_default=sa.false()),
    #: until when it is held, while it is
    sa.Column("hold_until", Instant),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("finished_at", Instant),
    postgresql_with=_QUEUE,
)
sa.Index("ix_deliveries_account_id", deliveries.c.account, deliveries.c.id)
sa.Index("ix_deliveries_source_id", deliveries.c.source_id, deliveries.c.subscription_id)
_partial_index(
    "ix_deliveries_subscription_id",
    deliveries.c.subscription_id,
    deliveries.c.id,
    where=deliveries.c.subscription_id.is_not(None),
)
#: A delivery waits to be leased: now or later. One whose body is not known yet does not.
is_waiting = sa.and_(_in_state(deliveries.c.state, "pending"), deliveries.c.due_at.is_not(None))
#: A delivery can still move.
is_live = _in_state(deliveries.c.state, *LIVE_STATES)
#: A delivery that keeps an order can still move: it stands before those with a later place.
is_ordered = sa.and_(is_live, deliveries.c.seq.is_not(None))
#: A delivery that keeps an order has its turn: it is being sent, or is due some time. One of each group at most.
is_in_turn = sa.and_(
    deliveries.c.seq.is_not(None),
    sa.or_(
        _in_state(deliveries.c.state, "leased"),
        sa.and_(_in_state(deliveries.c.state, "pending"), deliveries.c.due_at.is_not(None)),
    ),
)
#: A delivery that keeps an order waits behind others.
is_behind = sa.and_(
    _in_state(deliveries.c.state, "pending"), deliveries.c.due_at.is_(None), deliveries.c.seq.is_not(None)
)
#: A delivery is kept while its subscription is disabled.
is_held = _in_state(deliveries.c.state, "held")
_partial_index("ix_deliveries_due", deliveries.c.lane, deliveries.c.due_at, where=is_waiting)
_partial_index("ix_deliveries_ordered", deliveries.c.lane, deliveries.c.order_key, deliveries.c.seq, where=is_ordered)
_partial_index("ix_deliveries_in_turn", deliveries.c.lane, deliveries.c.order_key, where=is_in_turn)
_partial_index("ix_deliveries_behind", deliveries.c.lane, deliveries.c.seq, where=is_behind)
_partial_index("ix_deliveries_held", deliveries.c.subscription_id, deliveries.c.seq, deliveries.c.id, where=is_held)
_partial_index("ix_deliveries_hold_until", deliveries.c.hold_until, where=is_held)
_partial_index("ix_deliveries_live", deliveries.c.state, deliveries.c.account, where=is_live)

#: Payloads (under their task's or event's id) and exact bodies to send (a task's under its first delivery's id).
#: These and the attempts are most of what is stored. On PostgreSQL they stand in partitions by time (`partitions`).
bodies = sa.Table(
    "bodies",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("content", sa.LargeBinary, nullable=False),
    sa.Column("content_type", text(100), nullable=False),
    #: the event that it belongs to, where it is another form of its payload
    sa.Column("event_id", Id),
    #: further headers that belong to this body, such as CloudEvents attributes: [[name, value], …]
    sa.Column("headers", sa.JSON(none_as_null=True)),
    postgresql_partition_by="RANGE (id)",
)

_partial_index("ix_bodies_event_id", bodies.c.event_id, where=bodies.c.event_id.is_not(None))

attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("delivery_id", Id, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("outcome", text(20), nullable=False),
    sa.Column("status", sa.Integer),
    sa.Column("error", text(300)),
    sa.Column("started_at", Instant, nullable=False),
    sa.Column("duration_ms", sa.Float, nullable=False),
    sa.Column("retry_at", Instant),
    #: the status and headers came, but the body broke or was cut at our limit
    sa.Column("truncated", sa.Boolean, nullable=False),
    sa.Column("response_headers", sa.JSON(none_as_null=True)),
    sa.Column("response_body", sa.Text),
    sa.Column("timing", sa.JSON(none_as_null=True)),
    postgresql_partition_by="RANGE (delivery_id)",
)

#: Answers given under an Idempotency-Key.
idempotency = sa.Table(
    "idempotency",
    metadata,
    sa.Column("account", text(64), primary_key=True),
    sa.Column("route", text(100), primary_key=True),
    sa.Column("key", text(255), primary_key=True),
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
    sa.Column("account", text(64), primary_key=True),
    sa.Column("slot", sa.Integer, primary_key=True),
    #: `accepted`, or a terminal state
    sa.Column("state", text(10), primary_key=True),
    sa.Column("count", sa.BigInteger, nullable=False),
    postgresql_with=_COUNTERS,
)

#: What an account's operational endpoint is to be told of its subscriptions, gathered for a minute.
notices = sa.Table(
    "notices",
    metadata,
    sa.Column("account", text(64), primary_key=True),
    sa.Column("subscription_id", Id, primary_key=True),
    sa.Column("type", text(40), primary_key=True),
    #: how many times it happened since it was told last
    sa.Column("count", sa.Integer, nullable=False),
    #: what is said of the latest time
    sa.Column("detail", sa.JSON, nullable=False),
    sa.Column("first_at", Instant, nullable=False),
    sa.Column("last_at", Instant, nullable=False),
    #: when it may be told
    sa.Column("due_at", Instant, nullable=False),
)
sa.Index("ix_notices_due_at", notices.c.due_at)

#: Redeliveries of many, done step by step.
redeliveries = sa.Table(
    "redeliveries",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("account", text(64), nullable=False),
    #: which deliveries: states, subscription, event type, span of time
    sa.Column("criteria", sa.JSON, nullable=False),
    sa.Column("state", text(7), nullable=False),
    #: the last delivery that was looked at
    sa.Column("cursor", Id, nullable=False),
    #: where it ends
    sa.Column("until", Id, nullable=False),
    #: deliveries that were looked at, and those that were made
    sa.Column("seen", sa.Integer, nullable=False),
    sa.Column("made", sa.Integer, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("finished_at", Instant),
)
is_running = _in_state(redeliveries.c.state, "running")
_partial_index("ix_redeliveries_running", redeliveries.c.seen, redeliveries.c.id, where=is_running)
sa.Index("ix_redeliveries_account_id", redeliveries.c.account, redeliveries.c.id)

#: What other services ask for by their own transactions (PostgreSQL only): they insert, workers take. See
#: `dispatcher.parcels` for what the parts hold.
outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("id", Id, primary_key=True),
    #: counts insertions: what was committed before another was inserted has the lower number
    sa.Column("seq", sa.BigInteger, sa.Identity(always=True), nullable=False),
    sa.Column("account", text(64), nullable=False),
    #: `task` or `event`
    sa.Column("kind", text(5), nullable=False),
    #: the request, without its payload and what is sealed: a JSON object
    sa.Column("fields", sa.LargeBinary, nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    #: a task's callback URL, secret and headers, under a key of `outbox_keys`
    sa.Column("sealed", sa.LargeBinary),
    sa.Column("idempotency_key", text(255)),
    sa.Column("traceparent", text(55)),
    sa.Column("created_at", Instant, nullable=False),
    #: when it was refused, and why, as a problem (RFC 9457); it stays until an operator decides
    sa.Column("refused_at", Instant),
    sa.Column("problem", sa.JSON(none_as_null=True)),
    postgresql_with=_QUEUE,
)
#: A row of the outbox waits to be taken.
is_untaken = outbox.c.refused_at.is_(None)
_partial_index("ix_outbox_untaken", outbox.c.account, outbox.c.seq, where=is_untaken)
_partial_index("ix_outbox_refused", outbox.c.id, where=outbox.c.refused_at.is_not(None))

#: Key pairs to which the outbox's rows are sealed; the newest is in use. Whoever publishes reads the public half.
outbox_keys = sa.Table(
    "outbox_keys",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("public_key", sa.LargeBinary, nullable=False),
    sa.Column("private_key", Sealed, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
)
