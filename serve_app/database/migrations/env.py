"""Runs the migrations on the connection that `serve_app.database.connection` hands over."""

from alembic import context

from serve_app.database.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
