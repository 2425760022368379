"""Sessions say which role and version they are, and when their heart last beat."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from subscriptions.schema import text

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this step. Sessions of an older version, which may go on meanwhile, have the defaults."""
    op.add_column("sessions", sa.Column("role", text(6), server_default="all", nullable=False))
    op.add_column("sessions", sa.Column("version", text(40), server_default="", nullable=False))
    op.add_column("sessions", sa.Column("heartbeat_at", sa.BigInteger(), nullable=True))
