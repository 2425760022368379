"""What Alembic runs for each command: our metadata, on the connection that `upgrade` was given."""

from alembic import context

import dispatcher.store.tables  # noqa: F401 - fills the metadata
from dispatcher.store.migrations.steps import is_declared
from subscriptions.schema import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    # SQLite changes a table by copying it; Alembic does that in batch mode.
    render_as_batch=True,
    compare_type=True,
    include_name=is_declared,
)
context.run_migrations()
