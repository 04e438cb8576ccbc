"""Runs migrations on the connection that piolet.central.store.database gives."""

from alembic import context

from piolet.central.store.schema import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
