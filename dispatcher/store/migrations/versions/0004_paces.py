"""Paces that several processes keep together."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from subscriptions.schema import text

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this step."""
    op.create_table(
        "paces",
        sa.Column("subscription_id", text(32), nullable=False),
        sa.Column("session", text(32), nullable=False),
        sa.Column("until", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("subscription_id", name=op.f("pk_paces")),
        postgresql_with={"fillfactor": 50},
    )


def downgrade() -> None:
    """Undo this step."""
    op.drop_table("paces")
