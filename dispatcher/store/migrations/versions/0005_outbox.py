"""The outbox, and the keys that its rows are sealed to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from subscriptions.schema import text

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this step."""
    op.create_table(
        "outbox",
        sa.Column("id", text(32), nullable=False),
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("account", text(64), nullable=False),
        sa.Column("kind", text(5), nullable=False),
        sa.Column("fields", sa.LargeBinary(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=True),
        sa.Column("idempotency_key", text(255), nullable=True),
        sa.Column("traceparent", text(55), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("refused_at", sa.BigInteger(), nullable=True),
        sa.Column("problem", sa.JSON(none_as_null=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
        postgresql_with={
            "autovacuum_vacuum_scale_factor": 0.01,
            "autovacuum_vacuum_threshold": 1000,
            "autovacuum_analyze_scale_factor": 0.02,
        },
    )
    untaken, refused = sa.text("refused_at IS NULL"), sa.text("refused_at IS NOT NULL")
    op.create_index("ix_outbox_untaken", "outbox", ["account", "seq"], sqlite_where=untaken, postgresql_where=untaken)
    op.create_index("ix_outbox_refused", "outbox", ["id"], sqlite_where=refused, postgresql_where=refused)
    op.create_table(
        "outbox_keys",
        sa.Column("id", text(32), nullable=False),
        sa.Column("public_key", sa.LargeBinary(), nullable=False),
        sa.Column("private_key", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox_keys")),
    )
