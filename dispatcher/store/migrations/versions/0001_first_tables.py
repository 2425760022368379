"""Tables of the first version."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from subscriptions.schema import text

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this step."""
    op.create_table(
        "accounts",
        sa.Column("id", text(64), nullable=False),
        sa.Column("default_secret", sa.LargeBinary(), nullable=True),
        sa.Column("schemes", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("retry_schedule", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_accounts")),
    )
    op.create_table(
        "attempts",
        sa.Column("delivery_id", text(32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("outcome", text(20), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("error", text(300), nullable=True),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("duration_ms", sa.Float(), nullable=False),
        sa.Column("retry_at", sa.BigInteger(), nullable=True),
        sa.Column("truncated", sa.Boolean(), nullable=False),
        sa.Column("response_headers", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("response_body", sa.Text(), nullable=True),
        sa.Column("timing", sa.JSON(none_as_null=True), nullable=True),
        sa.PrimaryKeyConstraint("delivery_id", "number", name=op.f("pk_attempts")),
    )
    op.create_table(
        "audit",
        sa.Column("id", text(32), nullable=False),
        sa.Column("account", text(64), nullable=False),
        sa.Column("actor", text(100), nullable=False),
        sa.Column("action", text(50), nullable=False),
        sa.Column("subject", text(100), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_table(
        "bodies",
        sa.Column("id", text(32), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("content_type", text(100), nullable=False),
        sa.Column("headers", sa.JSON(none_as_null=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bodies")),
    )
    op.create_table(
        "deliveries",
        sa.Column("id", text(32), nullable=False),
        sa.Column("account", text(64), nullable=False),
        sa.Column("task_id", text(32), nullable=False),
        sa.Column("wire_id", text(32), nullable=False),
        sa.Column("redelivery_of", text(32), nullable=True),
        sa.Column("lane", text(370), nullable=False),
        sa.Column("state", text(10), nullable=False),
        sa.Column("mark", text(10), nullable=True),
        sa.Column("reason", text(20), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("last_outcome", text(20), nullable=True),
        sa.Column("repeats", sa.Integer(), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=True),
        sa.Column("session", text(32), nullable=True),
        sa.Column("body_id", text(32), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deliveries")),
    )
    with op.batch_alter_table("deliveries", schema=None) as batch_op:
        batch_op.create_index("ix_deliveries_account_id", ["account", "id"], unique=False)
        batch_op.create_index(
            "ix_deliveries_due",
            ["lane", "due_at"],
            unique=False,
            sqlite_where=sa.text("state = 'pending' AND due_at IS NOT NULL"),
            postgresql_where=sa.text("state = 'pending' AND due_at IS NOT NULL"),
        )
        batch_op.create_index(
            "ix_deliveries_live",
            ["state", "account"],
            unique=False,
            sqlite_where=sa.text("state IN ('pending', 'leased', 'held')"),
            postgresql_where=sa.text("state IN ('pending', 'leased', 'held')"),
        )
        batch_op.create_index("ix_deliveries_task_id", ["task_id"], unique=False)

    op.create_table(
        "idempotency",
        sa.Column("account", text(64), nullable=False),
        sa.Column("route", text(100), nullable=False),
        sa.Column("key", text(255), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(length=32), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("account", "route", "key", name=op.f("pk_idempotency")),
    )
    with op.batch_alter_table("idempotency", schema=None) as batch_op:
        batch_op.create_index("ix_idempotency_created_at", ["created_at"], unique=False)

    op.create_table(
        "installation",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("issuer", text(32), nullable=False),
        sa.Column("canary", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_installation")),
    )
    op.create_table(
        "ledger",
        sa.Column("account", text(64), nullable=False),
        sa.Column("slot", sa.Integer(), nullable=False),
        sa.Column("state", text(10), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("account", "slot", "state", name=op.f("pk_ledger")),
    )
    op.create_table(
        "sessions",
        sa.Column("id", text(32), nullable=False),
        sa.Column("host", text(255), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("last_batch", text(32), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sessions")),
    )
    op.create_table(
        "tasks",
        sa.Column("id", text(32), nullable=False),
        sa.Column("account", text(64), nullable=False),
        sa.Column("type", text(100), nullable=False),
        sa.Column("state", text(12), nullable=False),
        sa.Column("body_mode", text(24), nullable=False),
        sa.Column("metadata", sa.LargeBinary(), nullable=True),
        sa.Column("traceparent", text(55), nullable=True),
        sa.Column("error", sa.LargeBinary(), nullable=True),
        sa.Column("delivery_id", text(32), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("interruptions", sa.Integer(), nullable=False),
        sa.Column("session", text(32), nullable=True),
        sa.Column("lease_until", sa.BigInteger(), nullable=True),
        sa.Column("callback_url", sa.LargeBinary(), nullable=True),
        sa.Column("callback_secret", sa.LargeBinary(), nullable=True),
        sa.Column("callback_headers", sa.LargeBinary(), nullable=True),
        sa.Column("callback_origin", text(300), nullable=False),
        sa.Column("callback_fingerprint", text(16), nullable=False),
        sa.Column("callback_token", text(6), nullable=False),
        sa.Column("schemes", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("window_end", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tasks")),
    )
    with op.batch_alter_table("tasks", schema=None) as batch_op:
        batch_op.create_index("ix_tasks_account_id", ["account", "id"], unique=False)
        batch_op.create_index(
            "ix_tasks_processing",
            ["lease_until"],
            unique=False,
            sqlite_where=sa.text("state = 'processing'"),
            postgresql_where=sa.text("state = 'processing'"),
        )
        batch_op.create_index(
            "ix_tasks_queued",
            ["type", "due_at"],
            unique=False,
            sqlite_where=sa.text("state = 'queued'"),
            postgresql_where=sa.text("state = 'queued'"),
        )
        batch_op.create_index(
            "ix_tasks_window",
            ["window_end"],
            unique=False,
            sqlite_where=sa.text("callback_url IS NOT NULL"),
            postgresql_where=sa.text("callback_url IS NOT NULL"),
        )

    op.create_table(
        "tokens",
        sa.Column("jti", text(32), nullable=False),
        sa.Column("account", text(64), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("note", text(200), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("jti", name=op.f("pk_tokens")),
    )
