"""webhook endpoints, and what became of each attempt

Deliveries that are there are of jobs of ``API_KEY``: nobody else had a key.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("events", ARRAY(sa.Text()), nullable=False),
        sa.Column("generation", sa.Integer(), server_default="1", nullable=False),
        sa.Column("previous_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("disabled_reason", sa.Text(), nullable=True),
        sa.CheckConstraint("(disabled_at IS NULL) = (disabled_reason IS NULL)", name="webhook_endpoints_say_why_not"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("webhook_endpoints_of_key", "webhook_endpoints", ["key_id", "id"])
    op.alter_column("deliveries", "job_id", nullable=True)
    op.add_column("deliveries", sa.Column("endpoint_id", sa.Text(), nullable=True))
    op.create_foreign_key(
        "deliveries_endpoint_id_fkey",
        "deliveries",
        "webhook_endpoints",
        ["endpoint_id"],
        ["id"],
        ondelete="CASCADE",
    )
    op.add_column("deliveries", sa.Column("key_id", sa.Text(), server_default="", nullable=False))
    op.add_column("deliveries", sa.Column("event", sa.Text(), server_default="", nullable=False))
    op.add_column("deliveries", sa.Column("attempts_before", sa.Integer(), server_default="0", nullable=False))
    op.create_check_constraint(
        "deliveries_are_of_something", "deliveries", "job_id IS NOT NULL OR endpoint_id IS NOT NULL"
    )
    op.execute(
        "UPDATE deliveries SET key_id = jobs.key_id, event = 'job.' || jobs.status FROM jobs"
        " WHERE jobs.id = deliveries.job_id"
    )
    op.create_index("deliveries_of_key", "deliveries", ["key_id", "id"])
    for name, columns, condition in (
        ("deliveries_of_endpoint", ["endpoint_id", "id"], "endpoint_id IS NOT NULL"),
        ("deliveries_of_no_job", ["created_at"], "job_id IS NULL"),
    ):
        op.create_index(name, "deliveries", columns, postgresql_where=sa.text(condition))
    op.create_table(
        "delivery_attempts",
        sa.Column("delivery_id", sa.Text(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("answer", sa.Text(), server_default="", nullable=False),
        sa.Column("took_ms", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["delivery_id"], ["deliveries.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("delivery_id", "n"),
    )


def downgrade() -> None:
    op.drop_table("delivery_attempts")
    op.execute("DELETE FROM deliveries WHERE endpoint_id IS NOT NULL")
    for name in ("deliveries_of_no_job", "deliveries_of_endpoint", "deliveries_of_key"):
        op.drop_index(name, table_name="deliveries")
    op.drop_constraint("deliveries_are_of_something", "deliveries", type_="check")
    for name in ("attempts_before", "event", "key_id", "endpoint_id"):
        op.drop_column("deliveries", name)
    op.alter_column("deliveries", "job_id", nullable=False)
    op.drop_table("webhook_endpoints")
