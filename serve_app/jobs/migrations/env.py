"""Alembic's entry: runs the migrations in one transaction, one process at a time."""

from alembic import context
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from serve_app.jobs.tables import metadata

#: Key of the advisory lock that keeps two starting processes from migrating at once.
MIGRATION_LOCK = 0x766964656F

engine = create_engine(context.config.attributes["url"], poolclass=NullPool)
with engine.begin() as connection:
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
    context.configure(connection=connection, target_metadata=metadata)
    context.run_migrations()
