"""The index of windows holds only tasks that have one: most have none, and each paid for its entry twice."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

#: how long it waits for a lock, milliseconds: others wait behind it
LOCK_WITHIN = 10_000


def upgrade() -> None:
    """Apply this step."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(f"SET LOCAL lock_timeout = {LOCK_WITHIN}")
    has_one = sa.text("window_end IS NOT NULL AND callback_url IS NOT NULL")
    op.create_index("ix_tasks_window_end", "tasks", ["window_end"], sqlite_where=has_one, postgresql_where=has_one)
    # At last, since from here on nobody reads the table before the end of the transaction.
    op.drop_index("ix_tasks_window", "tasks")
