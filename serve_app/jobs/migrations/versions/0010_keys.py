"""API keys, and what the jobs of a key have cost

Tables are described in ``serve_app/jobs/tables.py``; the trigger that says whose a run is, and the view over the
launcher's books, are here alone.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

#: A trigger of its own, so that whoever writes runs need not know of keys. The job is there: its row begins the run.
_RUN_OF_KEY = """
CREATE FUNCTION run_of_key() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.key_id := coalesce((SELECT key_id FROM jobs WHERE id = NEW.job_id), '');
    RETURN NEW;
END $$;

CREATE TRIGGER runs_of_keys BEFORE INSERT ON runs FOR EACH ROW EXECUTE FUNCTION run_of_key();
"""

#: Dollars of the last 24 hours by key, as the books are now: of each node what it has cost so far, by the share of its
#: work so far. Jobs may be deleted, runs stay. ``OFFSET 0`` as in ``job_costs``.
_KEY_SPENDING = """
CREATE VIEW key_spending AS
SELECT share.key_id, sum(coalesce(share.busy_s / nullif(bill.busy_s, 0), 0) * bill.usd) AS usd
  FROM (SELECT key_id, node, sum(busy_s) AS busy_s FROM runs
         WHERE key_id <> '' AND started_at > now() - interval '24 hours' GROUP BY key_id, node) share
 CROSS JOIN LATERAL (SELECT * FROM node_bills WHERE node_bills.node = share.node OFFSET 0) bill
 GROUP BY share.key_id
"""


def _moment(name: str, **options: object) -> "sa.Column[object]":
    return sa.Column(name, sa.DateTime(timezone=True), **options)  # type: ignore[arg-type]


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("hint", sa.Text(), nullable=False),
        sa.Column("scopes", ARRAY(sa.Text()), nullable=False),
        sa.Column("requests_per_minute", sa.Integer(), nullable=True),
        sa.Column("running_jobs", sa.Integer(), nullable=True),
        sa.Column("queued_jobs", sa.Integer(), nullable=True),
        sa.Column("usd_per_day", sa.Double(), nullable=True),
        _moment("created_at", server_default=sa.text("now()"), nullable=False),
        _moment("expires_at", nullable=True),
        _moment("revoked_at", nullable=True),
        _moment("last_used_at", nullable=True),
        sa.Column("previous_hash", sa.Text(), nullable=True),
        _moment("previous_until", nullable=True),
        sa.CheckConstraint("cardinality(scopes) > 0", name="api_keys_may_something"),
        sa.CheckConstraint("(previous_hash IS NULL) = (previous_until IS NULL)", name="api_keys_overlap_ends"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("hash"),
    )
    op.create_index("api_keys_newest", "api_keys", [sa.literal_column("created_at DESC"), sa.literal_column("id DESC")])
    op.create_index(
        "jobs_open_of_key",
        "jobs",
        ["key_id", "status"],
        postgresql_where=sa.text("completed_at IS NULL AND key_id <> ''"),
    )
    op.add_column("runs", sa.Column("key_id", sa.Text(), server_default="", nullable=False))
    op.create_index("runs_of_key", "runs", ["key_id", "started_at"], postgresql_where=sa.text("key_id <> ''"))
    op.execute(_RUN_OF_KEY)
    op.execute(_KEY_SPENDING)


def downgrade() -> None:
    op.execute("DROP VIEW key_spending")
    op.execute("DROP TRIGGER runs_of_keys ON runs")
    op.execute("DROP FUNCTION run_of_key()")
    op.drop_index("runs_of_key", table_name="runs")
    op.drop_column("runs", "key_id")
    op.drop_index("jobs_open_of_key", table_name="jobs")
    op.drop_table("api_keys")
