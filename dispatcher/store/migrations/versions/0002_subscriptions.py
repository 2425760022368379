"""Subscriptions, their secrets, events, and deliveries that go to them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from subscriptions.schema import text

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this step."""
    op.create_table(
        "events",
        sa.Column("id", text(32), nullable=False),
        sa.Column("account", text(64), nullable=False),
        sa.Column("type", text(100), nullable=False),
        sa.Column("reference", text(255), nullable=True),
        sa.Column("subject", text(255), nullable=True),
        sa.Column("ordering_key", text(255), nullable=True),
        sa.Column("traceparent", text(55), nullable=True),
        sa.Column("deliveries", sa.Integer(), nullable=False),
        sa.Column("state", text(10), nullable=False),
        sa.Column("skipped", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
    )
    op.create_index("ix_events_account_id", "events", ["account", "id"], unique=False)
    op.create_table(
        "fan_outs",
        sa.Column("event_id", text(32), nullable=False),
        sa.Column("account", text(64), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("done", sa.Integer(), nullable=False),
        sa.Column("steps", sa.Integer(), nullable=False),
        sa.Column("bodies", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("event_id", name=op.f("pk_fan_outs")),
    )
    op.create_index("ix_fan_outs_steps", "fan_outs", ["account", "steps", "event_id"], unique=False)
    op.create_table(
        "fan_out_targets",
        sa.Column("event_id", text(32), nullable=False),
        sa.Column("ids", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("event_id", name=op.f("pk_fan_out_targets")),
    )
    op.create_table(
        "notices",
        sa.Column("account", text(64), nullable=False),
        sa.Column("subscription_id", text(32), nullable=False),
        sa.Column("type", text(40), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("first_at", sa.BigInteger(), nullable=False),
        sa.Column("last_at", sa.BigInteger(), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("account", "subscription_id", "type", name=op.f("pk_notices")),
    )
    op.create_index("ix_notices_due_at", "notices", ["due_at"], unique=False)
    op.create_table(
        "redeliveries",
        sa.Column("id", text(32), nullable=False),
        sa.Column("account", text(64), nullable=False),
        sa.Column("criteria", sa.JSON(), nullable=False),
        sa.Column("state", text(7), nullable=False),
        sa.Column("cursor", text(32), nullable=False),
        sa.Column("until", text(32), nullable=False),
        sa.Column("seen", sa.Integer(), nullable=False),
        sa.Column("made", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_redeliveries")),
    )
    op.create_index("ix_redeliveries_account_id", "redeliveries", ["account", "id"], unique=False)
    op.create_index(
        "ix_redeliveries_running",
        "redeliveries",
        ["seen", "id"],
        unique=False,
        sqlite_where=sa.text("state = 'running'"),
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_table(
        "secrets",
        sa.Column("id", text(32), nullable=False),
        sa.Column("account", text(64), nullable=False),
        sa.Column("subscription_id", text(32), nullable=False),
        sa.Column("text", sa.LargeBinary(), nullable=False),
        sa.Column("seed", sa.LargeBinary(), nullable=False),
        sa.Column("public_key", text(60), nullable=False),
        sa.Column("valid_from", sa.BigInteger(), nullable=False),
        sa.Column("valid_until", sa.BigInteger(), nullable=True),
        sa.Column("notice_at", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_secrets")),
    )
    op.create_index(
        "ix_secrets_ending",
        "secrets",
        ["notice_at"],
        unique=False,
        sqlite_where=sa.text("notice_at IS NOT NULL"),
        postgresql_where=sa.text("notice_at IS NOT NULL"),
    )
    op.create_index("ix_secrets_subscription_id", "secrets", ["subscription_id"], unique=False)
    op.create_table(
        "subscriptions",
        sa.Column("id", text(32), nullable=False),
        sa.Column("account", text(64), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("operational", sa.Boolean(), nullable=False),
        sa.Column("name", text(200), nullable=False),
        sa.Column("description", text(1000), nullable=True),
        sa.Column("metadata", sa.LargeBinary(), nullable=True),
        sa.Column("url", sa.LargeBinary(), nullable=True),
        sa.Column("origin", text(300), nullable=False),
        sa.Column("fingerprint", text(16), nullable=False),
        sa.Column("identity", text(16), nullable=True),
        sa.Column("headers", sa.LargeBinary(), nullable=True),
        sa.Column("events", sa.JSON(), nullable=False),
        sa.Column("filter", text(1000), nullable=True),
        sa.Column("body_mode", text(24), nullable=False),
        sa.Column("schemes", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("hub_method", text(6), nullable=False),
        sa.Column("ordering", text(12), nullable=False),
        sa.Column("on_exhausted", text(5), nullable=False),
        sa.Column("rate_limit", sa.Float(), nullable=True),
        sa.Column("retry_schedule", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("timeout", sa.Float(), nullable=True),
        sa.Column("disable_after_4xx", sa.Integer(), nullable=False),
        sa.Column("disable_on", text(8), nullable=False),
        sa.Column("disable_after", sa.Float(), nullable=False),
        sa.Column("hold_for", sa.Float(), nullable=False),
        sa.Column("state", text(8), nullable=False),
        sa.Column("disabled_reason", text(10), nullable=True),
        sa.Column("disabled_at", sa.BigInteger(), nullable=True),
        sa.Column("enabled_at", sa.BigInteger(), nullable=True),
        sa.Column("movement", text(8), nullable=True),
        sa.Column("verification", text(9), nullable=False),
        sa.Column("verifying", text(32), nullable=True),
        sa.Column("then", text(8), nullable=True),
        sa.Column("granting", text(32), nullable=True),
        sa.Column("refusals", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("failing_since", sa.BigInteger(), nullable=True),
        sa.Column("held", sa.BigInteger(), nullable=False),
        sa.Column("next_seq", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_subscriptions")),
    )
    op.create_index("ix_subscriptions_account_id", "subscriptions", ["account", "id"], unique=False)
    op.create_index("ix_subscriptions_account_version", "subscriptions", ["account", "version"], unique=False)
    op.create_index(
        "ix_subscriptions_granting",
        "subscriptions",
        ["granting"],
        unique=False,
        sqlite_where=sa.text("granting IS NOT NULL"),
        postgresql_where=sa.text("granting IS NOT NULL"),
    )
    op.create_index(
        "ix_subscriptions_deleted",
        "subscriptions",
        ["updated_at"],
        unique=False,
        sqlite_where=sa.text("state = 'deleted'"),
        postgresql_where=sa.text("state = 'deleted'"),
    )
    op.create_index("ix_subscriptions_identity", "subscriptions", ["account", "identity"], unique=True)
    op.create_index(
        "ix_subscriptions_moving",
        "subscriptions",
        ["id"],
        unique=False,
        sqlite_where=sa.text("movement IS NOT NULL"),
        postgresql_where=sa.text("movement IS NOT NULL"),
    )
    op.add_column("accounts", sa.Column("verification", text(9), server_default="none", nullable=False))
    op.add_column("accounts", sa.Column("subscriptions_version", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("accounts", sa.Column("operational_id", text(32), nullable=True))
    op.add_column("bodies", sa.Column("event_id", text(32), nullable=True))
    op.create_index(
        "ix_bodies_event_id",
        "bodies",
        ["event_id"],
        unique=False,
        sqlite_where=sa.text("event_id IS NOT NULL"),
        postgresql_where=sa.text("event_id IS NOT NULL"),
    )
    op.drop_index(op.f("ix_deliveries_task_id"), table_name="deliveries")
    op.execute("ALTER TABLE deliveries RENAME COLUMN task_id TO source_id")
    op.add_column("deliveries", sa.Column("subscription_id", text(32), nullable=True))
    op.add_column("deliveries", sa.Column("kind", text(9), server_default="message", nullable=False))
    op.add_column("deliveries", sa.Column("seq", sa.BigInteger(), nullable=True))
    op.add_column("deliveries", sa.Column("order_key", text(255), nullable=True))
    op.add_column("deliveries", sa.Column("refused", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("deliveries", sa.Column("other_secret", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("deliveries", sa.Column("hold_until", sa.BigInteger(), nullable=True))
    op.create_index(
        "ix_deliveries_behind",
        "deliveries",
        ["lane", "seq"],
        unique=False,
        sqlite_where=sa.text("state = 'pending' AND due_at IS NULL AND seq IS NOT NULL"),
        postgresql_where=sa.text("state = 'pending' AND due_at IS NULL AND seq IS NOT NULL"),
    )
    in_turn = "seq IS NOT NULL AND (state = 'leased' OR state = 'pending' AND due_at IS NOT NULL)"
    op.create_index(
        "ix_deliveries_in_turn",
        "deliveries",
        ["lane", "order_key"],
        unique=False,
        sqlite_where=sa.text(in_turn),
        postgresql_where=sa.text(in_turn),
    )
    op.create_index(
        "ix_deliveries_held",
        "deliveries",
        ["subscription_id", "seq", "id"],
        unique=False,
        sqlite_where=sa.text("state = 'held'"),
        postgresql_where=sa.text("state = 'held'"),
    )
    op.create_index(
        "ix_deliveries_hold_until",
        "deliveries",
        ["hold_until"],
        unique=False,
        sqlite_where=sa.text("state = 'held'"),
        postgresql_where=sa.text("state = 'held'"),
    )
    op.create_index(
        "ix_deliveries_ordered",
        "deliveries",
        ["lane", "order_key", "seq"],
        unique=False,
        sqlite_where=sa.text("state IN ('pending', 'leased', 'held') AND seq IS NOT NULL"),
        postgresql_where=sa.text("state IN ('pending', 'leased', 'held') AND seq IS NOT NULL"),
    )
    op.create_index("ix_deliveries_source_id", "deliveries", ["source_id", "subscription_id"], unique=False)
    op.create_index(
        "ix_deliveries_subscription_id",
        "deliveries",
        ["subscription_id", "id"],
        unique=False,
        sqlite_where=sa.text("subscription_id IS NOT NULL"),
        postgresql_where=sa.text("subscription_id IS NOT NULL"),
    )
