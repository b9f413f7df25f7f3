"""idempotency keys, metadata, run limits, retries"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("timeout_s", sa.Double(), nullable=True))
    op.add_column("jobs", sa.Column("metadata", postgresql.JSONB(), nullable=True))
    op.add_column("jobs", sa.Column("retry_of", sa.Text(), nullable=True))
    op.create_index(
        "jobs_metadata",
        "jobs",
        ["metadata"],
        postgresql_using="gin",
        postgresql_ops={"metadata": "jsonb_path_ops"},
        postgresql_where=sa.text("metadata IS NOT NULL"),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("status", sa.SmallInteger(), nullable=True),
        sa.Column("body", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("key_id", "route", "value"),
    )
    op.create_index("idempotency_keys_oldest", "idempotency_keys", ["created_at"])


def downgrade() -> None:
    op.drop_table("idempotency_keys")
    op.drop_index("jobs_metadata", table_name="jobs")
    op.drop_column("jobs", "retry_of")
    op.drop_column("jobs", "metadata")
    op.drop_column("jobs", "timeout_s")
