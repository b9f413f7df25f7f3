"""what changed, told"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

#: What a client sees of a job, as far as it can change. Not leases: they are renewed all the time.
_SEEN = (
    "model",
    "status",
    "stage",
    "progress",
    "attempt",
    "fault_log",
    "cancel_requested_at",
    "started_at",
    "completed_at",
    "output_key",
    "result_url",
    "media",
    "notes",
    "error_code",
    "error_message",
)


def _row(of: str) -> str:
    return f"({', '.join(f'{of}.{column}' for column in _SEEN)})"


#: A line moves when a job leaves it or comes back to it. A new job is told to nobody, so that a create costs no more:
#: nobody can watch it yet, and those behind whom it ranks see no difference.
_TRIGGERS = f"""
CREATE FUNCTION raise_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.version := OLD.version + 1;
    RETURN NEW;
END $$;
CREATE TRIGGER jobs_seen BEFORE UPDATE ON jobs FOR EACH ROW
    WHEN ({_row("OLD")} IS DISTINCT FROM {_row("NEW")}) EXECUTE FUNCTION raise_version();

CREATE FUNCTION tell_change() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    told text := OLD.id || ' ' || OLD.version + 1;
BEGIN
    IF (OLD.status = 'queued') <> (TG_OP = 'UPDATE' AND NEW.status = 'queued') THEN
        told := told || ' ' || coalesce(OLD.model, NEW.model);
    END IF;
    PERFORM pg_notify('video_api_changes', told);
    RETURN NULL;
END $$;
CREATE TRIGGER jobs_changed AFTER UPDATE ON jobs FOR EACH ROW
    WHEN (OLD.version IS DISTINCT FROM NEW.version) EXECUTE FUNCTION tell_change();
CREATE TRIGGER jobs_deleted AFTER DELETE ON jobs FOR EACH ROW EXECUTE FUNCTION tell_change();
"""


def upgrade() -> None:
    op.add_column("jobs", sa.Column("version", sa.BigInteger(), server_default="0", nullable=False))
    op.execute(_TRIGGERS)


def downgrade() -> None:
    for trigger in ("jobs_seen", "jobs_changed", "jobs_deleted"):
        op.execute(f"DROP TRIGGER {trigger} ON jobs")
    for function in ("raise_version", "tell_change"):
        op.execute(f"DROP FUNCTION {function}()")
    op.drop_column("jobs", "version")
