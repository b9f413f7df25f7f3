"""The schema as SQLAlchemy tables. Migrations in ``migrations/`` bring a database to it."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    column,
    false,
    func,
    table,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

metadata = MetaData()

#: What the service's role may do with a table, where its ``info`` says nothing else.
RIGHTS = "SELECT, INSERT, UPDATE, DELETE"

_TERMINAL = "status IN ('completed', 'failed', 'cancelled')"


def _timestamp(name: str, *, now: bool = False) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=not now, server_default=func.now() if now else None)


jobs = Table(
    "jobs",
    metadata,
    Column("id", Text, primary_key=True),
    #: Part of every key of the job's media: ids are chosen by clients, folders are not. Empty in rows of version 0002.
    Column("nonce", Text, nullable=False, server_default=""),
    #: Null while ``uploading``: a presigned upload does not say yet what it is for.
    Column("model", Text),
    #: Which of its model's deployments is to make it; null: the first, which has the model's name.
    Column("assigned", Text),
    Column("deployment", Text, Computed("coalesce(assigned, model)", persisted=True)),
    Column("status", Text, nullable=False),
    Column("stage", Text, nullable=False, server_default=""),
    Column("progress", Double, nullable=False, server_default="0"),
    Column("priority", SmallInteger, nullable=False, server_default="0"),
    Column("params", JSONB, nullable=False, server_default="{}"),
    #: How much of the GPU's time its parameters ask for: 1 is a job of the model that leaves all at their defaults.
    Column("effort", Double, nullable=False, server_default="1"),
    Column("sources", JSONB, nullable=False, server_default="{}"),
    Column("uploads", JSONB, nullable=False, server_default="{}"),
    #: The jobs for whose videos it waits; null: none (any more). Those that have ended meanwhile are taken out.
    Column("awaits", ARRAY(Text)),
    #: The jobs whose videos are its inputs; null: none. Until it has them, retention keeps them.
    Column("source_ids", ARRAY(Text)),
    #: Null until intake has verified and stored every input.
    Column("inputs", JSONB),
    #: The API key that asked; empty: the environment's ``API_KEY``.
    Column("key_id", Text, nullable=False, server_default=""),
    Column("user_id", Text),
    #: With whom others share fairly. A key's id has no slash.
    Column("owner", Text, Computed("key_id || '/' || coalesce(user_id, '')", persisted=True), nullable=False),
    Column("webhook_url", Text),
    Column("request_id", Text, nullable=False, server_default=""),
    Column("attempt", Integer, nullable=False, server_default="0"),
    Column("faults", Integer, nullable=False, server_default="0"),
    #: Of each attempt that failed: ``{attempt, code, message}``.
    Column("fault_log", JSONB, nullable=False, server_default="[]"),
    #: Its worker died once: from then on it has a replica for itself, so that it takes nobody along.
    Column("alone", Boolean, nullable=False, server_default=false()),
    #: How often in a row our own store stood in the way; the wait grows with it.
    Column("postponed", Integer, nullable=False, server_default="0"),
    #: Fencing: every write by a worker names the token of its claim.
    Column("lease_token", Text),
    #: The rented machine that has worked on it last, as Ray names it; empty: none.
    Column("node", Text, nullable=False, server_default=""),
    _timestamp("lease_expires_at"),
    _timestamp("not_before", now=True),
    _timestamp("cancel_requested_at"),
    _timestamp("created_at", now=True),
    _timestamp("started_at"),
    _timestamp("completed_at"),
    #: When the next attempt has to have started.
    _timestamp("expires_at"),
    #: Seconds that a client gives the job to start; every retry gets as many again.
    Column("expires_after", Double),
    #: Seconds that a client gives a run; null: as many as the model does.
    Column("timeout_s", Double),
    #: The client's own pairs of strings; null where there are none, so that jobs without cost its index nothing.
    Column("metadata", JSONB(none_as_null=True)),
    #: The job that this one was asked for in place of. It may be gone.
    Column("retry_of", Text),
    #: A finished video that the store could not be asked about yet: the worker's report.
    Column("outcome", JSONB(none_as_null=True)),
    Column("output_key", Text),
    #: Its first frame, as WebP. Null: there is none, as of a video that was made elsewhere.
    Column("poster_key", Text),
    Column("result_url", Text),
    Column("media", JSONB),
    Column("timings", JSONB, nullable=False, server_default="{}"),
    Column("notes", JSONB, nullable=False, server_default="{}"),
    Column("error_code", Text),
    Column("error_message", Text),
    #: Grows with each change that a client can see. Triggers of migration 0012 raise it, and tell ``feed.py``.
    Column("version", BigInteger, nullable=False, server_default="0"),
    CheckConstraint(
        f"status IN ('uploading', 'awaiting', 'queued', 'processing') OR {_TERMINAL}", name="jobs_status_known"
    ),
    CheckConstraint(f"({_TERMINAL}) = (completed_at IS NOT NULL)", name="jobs_end_is_dated"),
    CheckConstraint("status = 'uploading' OR model IS NOT NULL OR completed_at IS NOT NULL", name="jobs_model_known"),
    CheckConstraint(f"NOT ({_TERMINAL}) OR lease_token IS NULL", name="jobs_end_has_no_lease"),
    CheckConstraint("status <> 'processing' OR lease_token IS NOT NULL", name="jobs_running_has_lease"),
    CheckConstraint("(lease_token IS NULL) = (lease_expires_at IS NULL)", name="jobs_lease_expires"),
    CheckConstraint("status <> 'failed' OR error_code IS NOT NULL", name="jobs_failure_has_code"),
    CheckConstraint("(status = 'awaiting') = (awaits IS NOT NULL)", name="jobs_awaiting_awaits"),
    CheckConstraint(
        "status <> 'awaiting' OR lease_token IS NULL AND inputs IS NULL AND started_at IS NULL",
        name="jobs_awaiting_is_untouched",
    ),
    CheckConstraint(
        "status <> 'completed' OR output_key IS NOT NULL OR result_url IS NOT NULL", name="jobs_success_has_result"
    ),
    # Partial indexes: their size follows the work at hand, not the history.
    Index(
        "jobs_waiting",
        "deployment",
        "key_id",
        "owner",
        text("priority DESC"),
        "created_at",
        postgresql_where=text("status = 'queued' AND lease_token IS NULL"),
    ),
    Index(
        "jobs_to_run",
        "deployment",
        "owner",
        text("priority DESC"),
        "created_at",
        postgresql_where=text("status = 'queued' AND lease_token IS NULL AND inputs IS NOT NULL"),
    ),
    Index(
        "jobs_to_take_in",
        "owner",
        text("priority DESC"),
        "created_at",
        postgresql_where=text("status = 'queued' AND lease_token IS NULL AND inputs IS NULL"),
    ),
    Index("jobs_awaiting", "awaits", postgresql_using="gin", postgresql_where=text("awaits IS NOT NULL")),
    Index(
        "jobs_needing",
        "source_ids",
        postgresql_using="gin",
        postgresql_where=text("source_ids IS NOT NULL AND inputs IS NULL AND completed_at IS NULL"),
    ),
    Index("jobs_retries", "retry_of", postgresql_where=text("retry_of IS NOT NULL")),
    Index("jobs_leased", "lease_expires_at", postgresql_where=text("lease_token IS NOT NULL")),
    Index("jobs_open", "status", "expires_at", postgresql_where=text("completed_at IS NULL")),
    Index("jobs_open_of_key", "key_id", "status", postgresql_where=text("completed_at IS NULL AND key_id <> ''")),
    Index("jobs_unverified", "id", postgresql_where=text("outcome IS NOT NULL")),
    Index("jobs_ended", "status", "completed_at", postgresql_where=text("completed_at IS NOT NULL")),
    Index(
        "jobs_completed_of_owner",
        "owner",
        text("completed_at DESC"),
        postgresql_where=text("status = 'completed'"),
    ),
    Index("jobs_newest", text("created_at DESC"), text("id DESC")),
    Index("jobs_newest_of_key", "key_id", text("created_at DESC"), text("id DESC")),
    Index("jobs_newest_of_user", "user_id", text("created_at DESC"), text("id DESC")),
    Index(
        "jobs_metadata",
        "metadata",
        postgresql_using="gin",
        postgresql_ops={"metadata": "jsonb_path_ops"},
        postgresql_where=text("metadata IS NOT NULL"),
    ),
)

#: Jobs that have ended, or are deleted, while others waited for their videos: until those are seen to (``chains.py``).
#: A trigger of migration 0017 adds a row in the transaction of the end, whoever brings it about.
ended_sources = Table(
    "ended_sources",
    metadata,
    #: Its place among those of its key: a note that is not done with gets a new one, behind the others.
    Column("id", BigInteger, primary_key=True, autoincrement=True),
    #: No key of ``jobs``: it may be gone.
    Column("source_id", Text, nullable=False),
    #: The API key whose job it was.
    Column("key_id", Text, nullable=False),
    #: How it has ended, and the error if it failed; null: it was deleted.
    Column("status", Text),
    Column("error_code", Text),
    Column("error_message", Text),
    Index("ended_sources_of_key", "key_id", "id"),
)

#: What requests that came with an ``Idempotency-Key`` were answered with, for a day. Written in the transaction of what
#: was asked for, so that a crash leaves both or neither. No key of ``jobs``: an answer outlives its job.
idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    #: The API key that asked.
    Column("key_id", Text, primary_key=True),
    #: E.g. ``generate``.
    Column("route", Text, primary_key=True),
    #: The header.
    Column("value", Text, primary_key=True),
    #: SHA-256 of what was asked for.
    Column("fingerprint", Text, nullable=False),
    #: Both null only within the transaction that writes them.
    Column("status", SmallInteger),
    Column("body", Text),
    _timestamp("created_at", now=True),
    Index("idempotency_keys_oldest", "created_at"),
)

#: Where the events of a key's jobs are told, until they are disabled.
webhook_endpoints = Table(
    "webhook_endpoints",
    metadata,
    Column("id", Text, primary_key=True),
    #: Whose it is, and of whose jobs it is told; empty: the environment's ``API_KEY``.
    Column("key_id", Text, nullable=False),
    Column("url", Text, nullable=False),
    #: Those of ``WebhookEvent`` that it is told.
    Column("events", ARRAY(Text), nullable=False),
    #: Its secret follows from this number and its id (``signing.py``). The one before is good for a while longer.
    Column("generation", Integer, nullable=False, server_default="1"),
    _timestamp("previous_until"),
    _timestamp("created_at", now=True),
    _timestamp("disabled_at"),
    Column("disabled_reason", Text),
    CheckConstraint("(disabled_at IS NULL) = (disabled_reason IS NULL)", name="webhook_endpoints_say_why_not"),
    Index("webhook_endpoints_of_key", "key_id", "id"),
)

#: Who may call. Rows stay when a key is revoked or has expired: jobs and costs name them.
api_keys = Table(
    "api_keys",
    metadata,
    #: ``key_…``, without a slash.
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    #: Keyed, in hex: who reads this table can neither use a key nor tell whether a guess is one.
    Column("hash", Text, nullable=False, unique=True),
    #: How the key begins, to recognise it by.
    Column("hint", Text, nullable=False),
    Column("scopes", ARRAY(Text), nullable=False),
    #: Null: as much as there is.
    Column("requests_per_minute", Integer),
    Column("running_jobs", Integer),
    Column("queued_jobs", Integer),
    Column("usd_per_day", Double),
    _timestamp("created_at", now=True),
    _timestamp("expires_at"),
    _timestamp("revoked_at"),
    #: To the minute.
    _timestamp("last_used_at"),
    #: What it was before it was rotated, and until when that is still good.
    Column("previous_hash", Text),
    _timestamp("previous_until"),
    CheckConstraint("cardinality(scopes) > 0", name="api_keys_may_something"),
    CheckConstraint("(previous_hash IS NULL) = (previous_until IS NULL)", name="api_keys_overlap_ends"),
    Index("api_keys_newest", text("created_at DESC"), text("id DESC")),
    info={"rights": "SELECT, INSERT, UPDATE"},
)

deliveries = Table(
    "deliveries",
    metadata,
    #: Also the ``webhook-id`` header: the same over all retries. Later ones are greater.
    Column("id", Text, primary_key=True),
    #: Null of a test, which is about none.
    Column("job_id", Text, ForeignKey("jobs.id", ondelete="CASCADE"), index=True),
    #: Null: to the job's own ``webhook_url``, or to ``API_WEBHOOK_URL``.
    Column("endpoint_id", Text, ForeignKey("webhook_endpoints.id", ondelete="CASCADE")),
    #: Who may see it, and without an endpoint with whose secret it is signed: the job's key; empty where it is for the
    #: operator.
    Column("key_id", Text, nullable=False, server_default=""),
    Column("event", Text, nullable=False, server_default=""),
    Column("url", Text, nullable=False),
    #: With whom the others share fairly: the job's owner (a key and its user), and the receiver's server as the URL
    #: names it.
    Column("owner", Text, nullable=False, server_default=""),
    Column("host", Text, nullable=False, server_default=""),
    #: ``due``: whoever has room may send it. ``waiting``: until its time. ``sending``: somebody is at it; nobody is any
    #: more if nothing is heard of it by its time.
    Column("state", Text, nullable=False, server_default="due"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    #: Attempts that were made before it was asked to be sent again: the schedule goes by those since.
    Column("attempts_before", Integer, nullable=False, server_default="0"),
    #: Null once delivered or given up.
    Column("next_attempt_at", DateTime(timezone=True), server_default=func.now()),
    _timestamp("delivered_at"),
    Column("last_status", Integer),
    Column("last_error", Text),
    _timestamp("created_at", now=True),
    CheckConstraint("state IN ('due', 'waiting', 'sending')", name="deliveries_state_known"),
    CheckConstraint("job_id IS NOT NULL OR endpoint_id IS NOT NULL", name="deliveries_are_of_something"),
    Index(
        "deliveries_due",
        text("split_part(owner, '/', 1)"),
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
    Index("deliveries_of_key", "key_id", "id"),
    Index("deliveries_of_endpoint", "endpoint_id", "id", postgresql_where=text("endpoint_id IS NOT NULL")),
    Index("deliveries_of_no_job", "created_at", postgresql_where=text("job_id IS NULL")),
)

#: What became of each attempt of a delivery, the latest of them.
delivery_attempts = Table(
    "delivery_attempts",
    metadata,
    Column("delivery_id", Text, ForeignKey("deliveries.id", ondelete="CASCADE"), primary_key=True),
    Column("n", Integer, primary_key=True),
    _timestamp("at", now=True),
    #: Null: there was no answer.
    Column("status", Integer),
    #: Null: it was taken.
    Column("error", Text),
    #: What the receiver answered, as far as it is kept.
    Column("answer", Text, nullable=False, server_default=""),
    #: Milliseconds that it took, our own queues included.
    Column("took_ms", Integer, nullable=False),
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
    #: What of the store is meant, see ``storage/keys.py``. Empty in rows of version 0002: the job's id.
    Column("folder", Text, nullable=False, server_default=""),
)

#: Ids of forgotten jobs, for a month: a client may choose an id, but not one that was somebody's before.
used_ids = Table(
    "used_ids",
    metadata,
    Column("id", Text, primary_key=True),
    Column("folder", Text, nullable=False),
    _timestamp("forgotten_at", now=True),
    Index("used_ids_oldest", "forgotten_at"),
)

#: The lines of owners, by deployment (and ``''``: intake): who was served when, and who has a job that waits. Of owners
#: who have as much, the one served longest ago is next; a key was served when the last of its owners was. Triggers of
#: migrations 0011 and 0016 keep the last three columns as jobs come and go, so that a claim reads the heads of the
#: lines and not all of them.
turns = Table(
    "turns",
    metadata,
    Column("queue", Text, primary_key=True),
    #: As in ``jobs``: the key and, within it, the user.
    Column("owner", Text, primary_key=True),
    Column("key_id", Text, Computed("split_part(owner, '/', 1)", persisted=True), nullable=False),
    #: Grows with every claim; 0 for owners who have never been served.
    Column("turn", BigInteger, Identity(), nullable=False),
    _timestamp("served_at", now=True),
    #: Priority and age of the owner's best job that may be taken now; null if there is none.
    Column("priority", SmallInteger),
    _timestamp("since"),
    #: When the first of those may be taken whose back-off is not over; null if another can be taken, or none waits.
    _timestamp("later"),
    Index(
        "turns_next",
        "queue",
        "key_id",
        "turn",
        text("priority DESC"),
        "since",
        postgresql_where=text("since IS NOT NULL"),
    ),
    Index("turns_of_key", "queue", "key_id", "turn"),
    Index("turns_later", "queue", "later", postgresql_where=text("later IS NOT NULL")),
    Index("turns_oldest", "served_at", postgresql_where=text("since IS NULL AND later IS NULL")),
)

#: Why jobs wait, as the dispatcher last saw it: by deployment, or ``''`` for all of them.
conditions = Table(
    "conditions",
    metadata,
    Column("subject", Text, primary_key=True),
    Column("code", Text, nullable=False),
    Column("message", Text, nullable=False),
    _timestamp("since", now=True),
    #: A dispatcher that is gone must not be believed for long.
    _timestamp("seen_at", now=True),
)

#: How many jobs there are, as a sum of changes: triggers of migrations 0003 and 0016 add a row where a job appears,
#: changes its status or goes, and the dispatcher adds rows up. So counting reads no job, and nobody waits for a
#: counter's lock.
job_tally = Table(
    "job_tally",
    metadata,
    Column("model", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("n", BigInteger, nullable=False),
    Column("deployment", Text, nullable=False),
)

#: Which node worked on which attempt, and for how long. Triggers of migration 0007 keep it as jobs start and end; only
#: attempts on a node that has a name are here. Rows outlive their jobs: without them, the other jobs of the node would
#: seem to have cost more. A client who uses an id again, a month after it was forgotten, gets the sum of both.
runs = Table(
    "runs",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("started_at", DateTime(timezone=True), primary_key=True),
    Column("model", Text, nullable=False),
    #: Ray's cloud instance id, which is the id of the fleet's slot.
    Column("node", Text, nullable=False),
    #: The job's.
    Column("effort", Double, nullable=False),
    #: Null while it goes on.
    _timestamp("ended_at"),
    #: Seconds for which the GPU was this attempt's: as its worker has reported, else all of them.
    Column("busy_s", Double),
    #: ``completed``, ``failed`` or ``cancelled``, as its job ended with it; ``retried``: the job was to go on. Null
    #: until that is known, which of a video that could not be verified is later than its end.
    Column("outcome", Text),
    #: The job's, by a trigger of migration 0010.
    Column("key_id", Text, nullable=False, server_default=""),
    #: As in ``jobs``.
    Column("assigned", Text),
    Column("deployment", Text, Computed("coalesce(assigned, model)", persisted=True)),
    CheckConstraint("node <> ''", name="runs_node_is_named"),
    CheckConstraint("(ended_at IS NULL) = (busy_s IS NULL)", name="runs_end_is_measured"),
    CheckConstraint("outcome IS NULL OR ended_at IS NOT NULL", name="runs_outcome_is_an_end"),
    CheckConstraint("busy_s >= 0 AND ended_at >= started_at", name="runs_take_time"),
    Index("runs_of_node", "node"),
    Index("runs_of_key", "key_id", "started_at", postgresql_where=text("key_id <> ''")),
    Index("runs_open", "job_id", "attempt", postgresql_where=text("outcome IS NULL")),
    Index("runs_completed", "deployment", text("ended_at DESC"), postgresql_where=text("outcome = 'completed'")),
)

#: Which deployments there are, and what can be asked of each. The dispatcher keeps the rows; who takes requests reads
#: them, and decides by them which deployment is to make a job.
abilities = Table(
    "abilities",
    metadata,
    Column("deployment", Text, primary_key=True),
    Column("model", Text, nullable=False),
    #: GiB of its class of GPUs; null: it takes whatever node there is.
    Column("gib", SmallInteger),
    #: When a node of it was last there, or could be rented.
    _timestamp("had_at"),
    #: By replica what it last said, ``{"at": seconds since 1970, "ability": an Ability}``; of the latest ones.
    Column("said", JSONB, nullable=False, server_default=text("'{}'")),
)

#: What the launcher says of each deployment for which it can rent machines. The service only reads it.
outlooks = Table(
    "outlooks",
    metadata,
    Column("deployment", Text, primary_key=True),
    #: Why no machine is rented for it, a ``WaitCode``, and the same in words; both null: nothing stands in the way.
    Column("code", Text),
    Column("message", Text),
    #: Seconds from the wish for a machine to its first job.
    Column("start_s", Double, nullable=False),
    #: Dollars for a machine that works, the cheapest and the dearest that would be taken; null: not known yet.
    Column("usd_per_hour_low", Double),
    Column("usd_per_hour_high", Double),
    #: Dollars for one start: its time, and all that it fetches.
    Column("start_usd", Double),
    #: Dollars that the provider's account has left.
    Column("credit_usd", Double),
    _timestamp("seen_at", now=True),
    CheckConstraint("(code IS NULL) = (message IS NULL)", name="outlooks_reason_is_said"),
    CheckConstraint("start_s >= 0", name="outlooks_start_takes_time"),
    info={"rights": "SELECT"},
)

#: Views over the books of the launcher, which the service's role may read and which run with their owner's rights: what
#: each job has cost, and sums over all machines (migration 0007); what each key has cost in 24 hours (0010).
VIEWS = ("job_costs", "fleet_totals", "key_spending")
key_spending = table("key_spending", column("key_id", Text), column("usd", Double))
job_costs = table("job_costs", column("job_id", Text), column("cost_usd", Double))
fleet_totals = table(
    "fleet_totals", column("name", Text), column("subject", Text), column("label", Text), column("value", Double)
)
