"""The schema as SQLAlchemy tables. Migrations in ``migrations/`` bring a database to it."""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData()

_TERMINAL = "status IN ('completed', 'failed', 'cancelled')"


def _timestamp(name: str, *, now: bool = False) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=not now, server_default=func.now() if now else None)


jobs = Table(
    "jobs",
    metadata,
    Column("id", Text, primary_key=True),
    #: Null while ``uploading``: a presigned upload does not say yet what it is for.
    Column("model", Text),
    Column("status", Text, nullable=False),
    Column("stage", Text, nullable=False, server_default=""),
    Column("progress", Double, nullable=False, server_default="0"),
    Column("priority", SmallInteger, nullable=False, server_default="0"),
    Column("params", JSONB, nullable=False, server_default="{}"),
    Column("sources", JSONB, nullable=False, server_default="{}"),
    Column("uploads", JSONB, nullable=False, server_default="{}"),
    #: Null until intake has verified and stored every input.
    Column("inputs", JSONB),
    Column("user_id", Text),
    Column("webhook_url", Text),
    Column("request_id", Text, nullable=False, server_default=""),
    Column("attempt", Integer, nullable=False, server_default="0"),
    Column("faults", Integer, nullable=False, server_default="0"),
    #: Fencing: every write by a worker names the token of its claim.
    Column("lease_token", Text),
    _timestamp("lease_expires_at"),
    _timestamp("not_before", now=True),
    _timestamp("cancel_requested_at"),
    _timestamp("created_at", now=True),
    _timestamp("started_at"),
    _timestamp("completed_at"),
    _timestamp("expires_at"),
    Column("output_key", Text),
    Column("result_url", Text),
    Column("media", JSONB),
    Column("timings", JSONB, nullable=False, server_default="{}"),
    Column("notes", JSONB, nullable=False, server_default="{}"),
    Column("error_code", Text),
    Column("error_message", Text),
    CheckConstraint(f"status IN ('uploading', 'queued', 'processing') OR {_TERMINAL}", name="jobs_status_known"),
    CheckConstraint(f"({_TERMINAL}) = (completed_at IS NOT NULL)", name="jobs_end_is_dated"),
    CheckConstraint("status = 'uploading' OR model IS NOT NULL OR completed_at IS NOT NULL", name="jobs_model_known"),
    CheckConstraint(f"NOT ({_TERMINAL}) OR lease_token IS NULL", name="jobs_end_has_no_lease"),
    CheckConstraint("status <> 'processing' OR lease_token IS NOT NULL", name="jobs_running_has_lease"),
    CheckConstraint("(lease_token IS NULL) = (lease_expires_at IS NULL)", name="jobs_lease_expires"),
    CheckConstraint("status <> 'failed' OR error_code IS NOT NULL", name="jobs_failure_has_code"),
    CheckConstraint(
        "status <> 'completed' OR output_key IS NOT NULL OR result_url IS NOT NULL", name="jobs_success_has_result"
    ),
    # Partial indexes: their size follows the work at hand, not the history.
    Index(
        "jobs_waiting",
        "model",
        text("coalesce(user_id, '')"),
        text("priority DESC"),
        "created_at",
        postgresql_where=text("status = 'queued' AND lease_token IS NULL"),
    ),
    Index(
        "jobs_to_take_in",
        text("coalesce(user_id, '')"),
        text("priority DESC"),
        "created_at",
        postgresql_where=text("status = 'queued' AND lease_token IS NULL AND inputs IS NULL"),
    ),
    Index("jobs_leased", "lease_expires_at", postgresql_where=text("lease_token IS NOT NULL")),
    Index("jobs_open", "status", "expires_at", postgresql_where=text("completed_at IS NULL")),
    Index("jobs_ended", "status", "completed_at", postgresql_where=text("completed_at IS NOT NULL")),
    Index("jobs_newest", text("created_at DESC"), text("id DESC")),
    Index("jobs_newest_of_user", "user_id", text("created_at DESC"), text("id DESC")),
)

deliveries = Table(
    "deliveries",
    metadata,
    #: Also the ``webhook-id`` header: the same over all retries.
    Column("id", Text, primary_key=True),
    Column("job_id", Text, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("url", Text, nullable=False),
    #: With whom the others share fairly: the job's user, and the receiver's server as the URL names it.
    Column("owner", Text, nullable=False, server_default=""),
    Column("host", Text, nullable=False, server_default=""),
    #: ``due``: whoever has room may send it. ``waiting``: until its time. ``sending``: somebody is at it; nobody is any
    #: more if nothing is heard of it by its time.
    Column("state", Text, nullable=False, server_default="due"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    #: Null once delivered or given up.
    Column("next_attempt_at", DateTime(timezone=True), server_default=func.now()),
    _timestamp("delivered_at"),
    Column("last_status", Integer),
    Column("last_error", Text),
    _timestamp("created_at", now=True),
    CheckConstraint("state IN ('due', 'waiting', 'sending')", name="deliveries_state_known"),
    Index(
        "deliveries_due",
        "owner",
        "host",
        "next_attempt_at",
        postgresql_where=text("state = 'due' AND next_attempt_at IS NOT NULL"),
    ),
    Index(
        "deliveries_sending",
        "owner",
        "host",
        postgresql_where=text("state = 'sending' AND next_attempt_at IS NOT NULL"),
    ),
    Index(
        "deliveries_later",
        "next_attempt_at",
        postgresql_where=text("state <> 'due' AND next_attempt_at IS NOT NULL"),
    ),
)

#: Monotonic counters for ``/metrics``. In the database because replicas come and go and jobs are deleted.
counters = Table(
    "counters",
    metadata,
    Column("name", Text, primary_key=True),
    #: Label values joined by a comma, in the order ``metrics.py`` names them.
    Column("labels", Text, primary_key=True),
    Column("value", Double, nullable=False),
)

#: Objects to delete: written in the transaction that forgets the job, so a crash between the two leaks nothing.
discarded_media = Table(
    "discarded_media",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=True),
    Column("job_id", Text, nullable=False),
)
