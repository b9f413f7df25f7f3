"""jobs, deliveries, counters"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "counters",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", "labels"),
    )
    op.create_table(
        "discarded_media",
        sa.Column("id", sa.BigInteger(), autoincrement=True, nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("stage", sa.Text(), server_default="", nullable=False),
        sa.Column("progress", sa.Double(), server_default="0", nullable=False),
        sa.Column("priority", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("params", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("sources", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("uploads", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("inputs", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("user_id", sa.Text(), nullable=True),
        sa.Column("webhook_url", sa.Text(), nullable=True),
        sa.Column("request_id", sa.Text(), server_default="", nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("faults", sa.Integer(), server_default="0", nullable=False),
        sa.Column("lease_token", sa.Text(), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("not_before", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("cancel_requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("output_key", sa.Text(), nullable=True),
        sa.Column("result_url", sa.Text(), nullable=True),
        sa.Column("media", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("timings", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("notes", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "(status IN ('completed', 'failed', 'cancelled')) = (completed_at IS NOT NULL)", name="jobs_end_is_dated"
        ),
        sa.CheckConstraint(
            "NOT (status IN ('completed', 'failed', 'cancelled')) OR lease_token IS NULL", name="jobs_end_has_no_lease"
        ),
        sa.CheckConstraint(
            "status <> 'completed' OR output_key IS NOT NULL OR result_url IS NOT NULL", name="jobs_success_has_result"
        ),
        sa.CheckConstraint("status <> 'failed' OR error_code IS NOT NULL", name="jobs_failure_has_code"),
        sa.CheckConstraint("status <> 'processing' OR lease_token IS NOT NULL", name="jobs_running_has_lease"),
        sa.CheckConstraint(
            "status = 'uploading' OR model IS NOT NULL OR completed_at IS NOT NULL", name="jobs_model_known"
        ),
        sa.CheckConstraint(
            "status IN ('uploading', 'queued', 'processing') OR status IN ('completed', 'failed', 'cancelled')",
            name="jobs_status_known",
        ),
        sa.CheckConstraint("(lease_token IS NULL) = (lease_expires_at IS NULL)", name="jobs_lease_expires"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "jobs_ended",
        "jobs",
        ["status", "completed_at"],
        unique=False,
        postgresql_where=sa.text("completed_at IS NOT NULL"),
    )
    op.create_index(
        "jobs_leased", "jobs", ["lease_expires_at"], unique=False, postgresql_where=sa.text("lease_token IS NOT NULL")
    )
    op.create_index(
        "jobs_newest", "jobs", [sa.literal_column("created_at DESC"), sa.literal_column("id DESC")], unique=False
    )
    op.create_index(
        "jobs_newest_of_user",
        "jobs",
        ["user_id", sa.literal_column("created_at DESC"), sa.literal_column("id DESC")],
        unique=False,
    )
    op.create_index(
        "jobs_open", "jobs", ["status", "expires_at"], unique=False, postgresql_where=sa.text("completed_at IS NULL")
    )
    op.create_index(
        "jobs_waiting",
        "jobs",
        ["model", sa.literal_column("coalesce(user_id, '')"), sa.literal_column("priority DESC"), "created_at"],
        unique=False,
        postgresql_where=sa.text("status = 'queued' AND lease_token IS NULL"),
    )
    op.create_index(
        "jobs_to_take_in",
        "jobs",
        [sa.literal_column("coalesce(user_id, '')"), sa.literal_column("priority DESC"), "created_at"],
        postgresql_where=sa.text("status = 'queued' AND lease_token IS NULL AND inputs IS NULL"),
    )
    op.create_table(
        "deliveries",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=True),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_status", sa.Integer(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "deliveries_due",
        "deliveries",
        ["next_attempt_at"],
        unique=False,
        postgresql_where=sa.text("next_attempt_at IS NOT NULL"),
    )
    op.create_index(op.f("ix_deliveries_job_id"), "deliveries", ["job_id"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_deliveries_job_id"), table_name="deliveries")
    op.drop_index("deliveries_due", table_name="deliveries", postgresql_where=sa.text("next_attempt_at IS NOT NULL"))
    op.drop_table("deliveries")
    op.drop_index(
        "jobs_waiting", table_name="jobs", postgresql_where=sa.text("status = 'queued' AND lease_token IS NULL")
    )
    op.drop_index("jobs_open", table_name="jobs", postgresql_where=sa.text("completed_at IS NULL"))
    op.drop_index("jobs_newest_of_user", table_name="jobs")
    op.drop_index("jobs_newest", table_name="jobs")
    op.drop_index("jobs_leased", table_name="jobs", postgresql_where=sa.text("lease_token IS NOT NULL"))
    op.drop_index("jobs_ended", table_name="jobs", postgresql_where=sa.text("completed_at IS NOT NULL"))
    op.drop_index("jobs_to_take_in", table_name="jobs")
    op.drop_table("jobs")
    op.drop_table("discarded_media")
    op.drop_table("counters")
