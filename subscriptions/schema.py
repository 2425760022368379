"""The one MetaData that every table of ours belongs to, and the column types that all tables share."""

from __future__ import annotations

import sqlalchemy as sa

#: Names for constraints and indexes, so that migrations can address them on every database.
metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def text(length: int) -> sa.String:
    """Text that every database compares byte by byte. PostgreSQL's default are the rules of some language, slower and
    not the same on every machine.
    """
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


#: a UUIDv7 (RFC 9562) as 32 hex digits: sorts by creation time
Id = text(32)

#: a moment: milliseconds since the Unix epoch, by the database's clock
Instant = sa.BigInteger()

#: encrypted bytes, see `subscriptions.keyring`
Sealed = sa.LargeBinary()

#: Standing endpoints. URL and custom headers are sealed; what happens to its deliveries follows from `state`.
subscriptions = sa.Table(
    "subscriptions",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("account", text(64), nullable=False),
    #: the account's count of changes when this row last changed: what is cached of it is good for this version
    sa.Column("version", sa.BigInteger, nullable=False),
    #: true of the one that is told of the account's other subscriptions; no published event goes there
    sa.Column("operational", sa.Boolean, nullable=False),
    sa.Column("name", text(200), nullable=False),
    sa.Column("description", text(1000)),
    sa.Column("metadata", sa.LargeBinary),
    # where it goes
    sa.Column("url", Sealed),
    sa.Column("origin", text(300), nullable=False),
    #: keyed digest of the URL
    sa.Column("fingerprint", text(16), nullable=False),
    #: keyed digest of the URL and the patterns: two of one account with the same one are the same subscription
    sa.Column("identity", text(16)),
    sa.Column("headers", Sealed),
    # what goes there
    sa.Column("events", sa.JSON, nullable=False),
    sa.Column("filter", text(1000)),
    sa.Column("body_mode", text(24), nullable=False),
    sa.Column("schemes", sa.JSON(none_as_null=True)),
    sa.Column("hub_method", text(6), nullable=False),
    # how
    sa.Column("ordering", text(12), nullable=False),
    sa.Column("on_exhausted", text(5), nullable=False),
    #: requests per second
    sa.Column("rate_limit", sa.Float),
    sa.Column("retry_schedule", sa.JSON(none_as_null=True)),
    #: seconds
    sa.Column("timeout", sa.Float),
    sa.Column("disable_after_4xx", sa.Integer, nullable=False),
    sa.Column("disable_on", text(8), nullable=False),
    #: seconds
    sa.Column("disable_after", sa.Float, nullable=False),
    #: seconds
    sa.Column("hold_for", sa.Float, nullable=False),
    # where it stands
    sa.Column("state", text(8), nullable=False),
    sa.Column("disabled_reason", text(10)),
    sa.Column("disabled_at", Instant),
    #: when it was last enabled; none if it never was disabled
    sa.Column("enabled_at", Instant),
    #: what is being done, step by step, to deliveries that wait: `hold`, `release`, `discard` or `cancel`
    sa.Column("movement", text(8)),
    #: how it proves that it wants what we send: `none`, `ping` or `handshake`
    sa.Column("verification", text(9), nullable=False),
    #: the delivery whose success enables it
    sa.Column("verifying", Id),
    #: the movement that begins then
    sa.Column("then", text(8)),
    #: the handshake that its endpoint may still grant, later and by itself
    sa.Column("granting", Id),
    #: refusals since the last success
    sa.Column("refusals", sa.Integer, nullable=False),
    #: failures since the last success
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("failing_since", Instant),
    #: deliveries that are held for it
    sa.Column("held", sa.BigInteger, nullable=False),
    #: the place in order that its next delivery gets
    sa.Column("next_seq", sa.BigInteger, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("updated_at", Instant, nullable=False),
    # Places, numbers of what is held, and health change often, and no index has them: see dispatcher.store.tables.
    postgresql_with={"fillfactor": 70},
)
sa.Index("ix_subscriptions_account_version", subscriptions.c.account, subscriptions.c.version)
sa.Index("ix_subscriptions_account_id", subscriptions.c.account, subscriptions.c.id)
sa.Index("ix_subscriptions_identity", subscriptions.c.account, subscriptions.c.identity, unique=True)
is_moving = subscriptions.c.movement.is_not(None)
sa.Index("ix_subscriptions_moving", subscriptions.c.id, sqlite_where=is_moving, postgresql_where=is_moving)
is_deleted = subscriptions.c.state == sa.literal_column("'deleted'")
sa.Index("ix_subscriptions_deleted", subscriptions.c.updated_at, sqlite_where=is_deleted, postgresql_where=is_deleted)
is_granting = subscriptions.c.granting.is_not(None)
sa.Index("ix_subscriptions_granting", subscriptions.c.granting, sqlite_where=is_granting, postgresql_where=is_granting)

#: What signs a subscription's deliveries: several at a time, each with the span in which it is valid.
secrets = sa.Table(
    "secrets",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("account", text(64), nullable=False),
    sa.Column("subscription_id", Id, nullable=False),
    sa.Column("text", Sealed, nullable=False),
    #: private key of its Ed25519 pair
    sa.Column("seed", Sealed, nullable=False),
    #: `whpk_…`
    sa.Column("public_key", text(60), nullable=False),
    sa.Column("valid_from", Instant, nullable=False),
    #: none means until it is rotated or revoked
    sa.Column("valid_until", Instant),
    #: when its owner is to be told that it ends soon; none once that is done
    sa.Column("notice_at", Instant),
    sa.Column("created_at", Instant, nullable=False),
)
sa.Index("ix_secrets_subscription_id", secrets.c.subscription_id)
is_ending = secrets.c.notice_at.is_not(None)
sa.Index("ix_secrets_ending", secrets.c.notice_at, sqlite_where=is_ending, postgresql_where=is_ending)
