"""true ends, fair shares, counts that cost nothing

Tables and columns are described in ``serve_app/jobs/tables.py``; the triggers that keep ``job_tally`` are here alone.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_COLUMNS = ("nonce", "fault_log", "alone", "postponed", "expires_after", "outcome")
_TABLES = ("used_ids", "turns", "conditions", "job_tally")

#: Statement triggers for what adds and removes many rows at once, a row trigger for the updates, of which few change
#: a status: renewing a lease costs nothing.
_TALLY = """
CREATE FUNCTION tally_jobs() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO job_tally SELECT model, status, count(*) FROM changed WHERE model IS NOT NULL GROUP BY 1, 2;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO job_tally SELECT model, status, -count(*) FROM changed WHERE model IS NOT NULL GROUP BY 1, 2;
    ELSIF TG_OP = 'TRUNCATE' THEN
        DELETE FROM job_tally;
    ELSE
        IF OLD.model IS NOT NULL THEN
            INSERT INTO job_tally VALUES (OLD.model, OLD.status, -1);
        END IF;
        IF NEW.model IS NOT NULL THEN
            INSERT INTO job_tally VALUES (NEW.model, NEW.status, 1);
        END IF;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER jobs_added AFTER INSERT ON jobs REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION tally_jobs();
CREATE TRIGGER jobs_removed AFTER DELETE ON jobs REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION tally_jobs();
CREATE TRIGGER jobs_moved AFTER UPDATE OF status, model ON jobs FOR EACH ROW
    WHEN (OLD.status IS DISTINCT FROM NEW.status OR OLD.model IS DISTINCT FROM NEW.model)
    EXECUTE FUNCTION tally_jobs();
CREATE TRIGGER jobs_truncated AFTER TRUNCATE ON jobs FOR EACH STATEMENT EXECUTE FUNCTION tally_jobs();
"""


def upgrade() -> None:
    op.add_column("jobs", sa.Column("nonce", sa.Text(), server_default="", nullable=False))
    op.add_column(
        "jobs",
        sa.Column("fault_log", postgresql.JSONB(astext_type=sa.Text()), server_default="[]", nullable=False),
    )
    op.add_column("jobs", sa.Column("alone", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("jobs", sa.Column("postponed", sa.Integer(), server_default="0", nullable=False))
    op.add_column("jobs", sa.Column("expires_after", sa.Double(), nullable=True))
    op.add_column("jobs", sa.Column("outcome", postgresql.JSONB(astext_type=sa.Text()), nullable=True))
    op.create_index(
        "jobs_to_run",
        "jobs",
        ["model", sa.literal_column("coalesce(user_id, '')"), sa.literal_column("priority DESC"), "created_at"],
        postgresql_where=sa.text("status = 'queued' AND lease_token IS NULL AND inputs IS NOT NULL"),
    )
    op.create_index("jobs_unverified", "jobs", ["id"], postgresql_where=sa.text("outcome IS NOT NULL"))
    op.add_column("discarded_media", sa.Column("folder", sa.Text(), server_default="", nullable=False))
    op.create_table(
        "used_ids",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("folder", sa.Text(), nullable=False),
        sa.Column("forgotten_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("used_ids_oldest", "used_ids", ["forgotten_at"])
    op.create_table(
        "turns",
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("turn", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("served_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("queue", "user_id"),
    )
    op.create_table(
        "conditions",
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("subject"),
    )
    op.create_table(
        "job_tally",
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
    )
    # The triggers first: they lock out writers, so between them and the sum nothing is missed or counted twice.
    op.execute(_TALLY)
    op.execute("INSERT INTO job_tally SELECT model, status, count(*) FROM jobs WHERE model IS NOT NULL GROUP BY 1, 2")


def downgrade() -> None:
    for trigger in ("jobs_added", "jobs_removed", "jobs_moved", "jobs_truncated"):
        op.execute(f"DROP TRIGGER {trigger} ON jobs")
    op.execute("DROP FUNCTION tally_jobs()")
    for table in _TABLES:
        op.drop_table(table)
    op.drop_column("discarded_media", "folder")
    op.drop_index("jobs_unverified", table_name="jobs")
    op.drop_index("jobs_to_run", table_name="jobs")
    for column in _COLUMNS:
        op.drop_column("jobs", column)
