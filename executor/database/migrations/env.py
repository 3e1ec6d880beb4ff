"""Runs the migrations over the connection that `executor.database.schema` opened. Alembic executes this module."""

from alembic import context

from executor.database.indexes import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    render_as_batch=True,
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
