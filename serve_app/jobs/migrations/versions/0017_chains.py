"""jobs that wait for the video of another

Columns are described in ``serve_app/jobs/tables.py``, what becomes of the notes in ``serve_app/jobs/chains.py``.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

#: Whoever makes a job that waits holds its sources against their end (``chains.awaited``), so none is missed here.
#: Ends that are noted already need no other note when their job is deleted.
_NOTES = """
CREATE FUNCTION note_ended_source() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM jobs WHERE awaits @> ARRAY[OLD.id]) THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'DELETE' THEN
        INSERT INTO ended_sources (source_id, key_id) VALUES (OLD.id, OLD.key_id);
    ELSE
        INSERT INTO ended_sources (source_id, key_id, status, error_code, error_message)
        VALUES (NEW.id, NEW.key_id, NEW.status, NEW.error_code, NEW.error_message);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER jobs_ended_as_sources AFTER UPDATE OF completed_at ON jobs FOR EACH ROW
    WHEN (OLD.completed_at IS NULL AND NEW.completed_at IS NOT NULL) EXECUTE FUNCTION note_ended_source();
CREATE TRIGGER jobs_deleted_as_sources AFTER DELETE ON jobs FOR EACH ROW
    WHEN (OLD.completed_at IS NULL) EXECUTE FUNCTION note_ended_source();
"""

_KNOWN = "status IN ({open}) OR status IN ('completed', 'failed', 'cancelled')"


def upgrade() -> None:
    for column in ("awaits", "source_ids"):
        op.add_column("jobs", sa.Column(column, ARRAY(sa.Text()), nullable=True))
    _know("'uploading', 'awaiting', 'queued', 'processing'")
    op.create_check_constraint("jobs_awaiting_awaits", "jobs", "(status = 'awaiting') = (awaits IS NOT NULL)")
    untouched = "status <> 'awaiting' OR lease_token IS NULL AND inputs IS NULL AND started_at IS NULL"
    op.create_check_constraint("jobs_awaiting_is_untouched", "jobs", untouched)
    some = sa.text("awaits IS NOT NULL")
    op.create_index("jobs_awaiting", "jobs", ["awaits"], postgresql_using="gin", postgresql_where=some)
    needing = sa.text("source_ids IS NOT NULL AND inputs IS NULL AND completed_at IS NULL")
    op.create_index("jobs_needing", "jobs", ["source_ids"], postgresql_using="gin", postgresql_where=needing)
    op.create_index("jobs_retries", "jobs", ["retry_of"], postgresql_where=sa.text("retry_of IS NOT NULL"))
    op.create_table(
        "ended_sources",
        sa.Column("id", sa.BigInteger(), autoincrement=True, nullable=False),
        sa.Column("source_id", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ended_sources_of_key", "ended_sources", ["key_id", "id"])
    op.execute(_NOTES)
    _see("awaits")


def downgrade() -> None:
    op.execute("DROP TRIGGER jobs_ended_as_sources ON jobs")
    op.execute("DROP TRIGGER jobs_deleted_as_sources ON jobs")
    op.execute("DROP FUNCTION note_ended_source()")
    # The version before can't make them, nor what has taken a video already and is to be fetched once more.
    op.execute(
        "UPDATE jobs SET status = 'failed', stage = 'failed', completed_at = now(), awaits = NULL,"
        " error_code = 'internal_error', error_message = 'The service went back to a version without chains.'"
        " WHERE status = 'awaiting'"
    )
    _see()
    op.drop_table("ended_sources")
    for index in ("jobs_awaiting", "jobs_needing", "jobs_retries"):
        op.drop_index(index, table_name="jobs")
    for check in ("jobs_awaiting_awaits", "jobs_awaiting_is_untouched"):
        op.drop_constraint(check, "jobs", type_="check")
    _know("'uploading', 'queued', 'processing'")
    for column in ("awaits", "source_ids"):
        op.drop_column("jobs", column)


def _know(statuses: str) -> None:
    op.drop_constraint("jobs_status_known", "jobs", type_="check")
    op.create_check_constraint("jobs_status_known", "jobs", _KNOWN.format(open=statuses))


def _see(*more: str) -> None:
    """What a client sees of a job: as in migration 0012, and more."""
    script: Any = op.get_context().script
    columns = (*script.get_revision("0012").module._SEEN, *more)
    old, new = (f"({', '.join(f'{of}.{column}' for column in columns)})" for of in ("OLD", "NEW"))
    op.execute("DROP TRIGGER jobs_seen ON jobs")
    op.execute(
        "CREATE TRIGGER jobs_seen BEFORE UPDATE ON jobs FOR EACH ROW"
        f" WHEN ({old} IS DISTINCT FROM {new}) EXECUTE FUNCTION raise_version()"
    )
