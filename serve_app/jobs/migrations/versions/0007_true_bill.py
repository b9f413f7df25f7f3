"""which node worked on which attempt, what each job has cost, and what the launcher says to the service

Tables are described in ``serve_app/jobs/tables.py``; the triggers that keep ``runs``, and the views over the launcher's
books, are here alone.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_TRIGGERS = ("jobs_run_started", "jobs_run_ended", "jobs_run_forgotten")
_VIEWS = ("fleet_totals", "job_costs", "node_bills")

#: Whatever ends an attempt takes its job out of ``processing``, so nothing can end one past these. A video that can't
#: be verified yet leaves its worker, and stays ``processing``: the run has ended, how is not known.
#:
#: ``jobs.timings`` adds up over attempts: what it has grown by is this one's, and nothing where it never came to the
#: GPU. Of a worker that has said nothing it is all of its time. It can't have had the GPU for longer than it had the
#: job, whatever it says.
_RUNS = """
CREATE FUNCTION gpu_seconds(timings jsonb) RETURNS double precision LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN jsonb_typeof(timings -> 'run') = 'number' THEN (timings ->> 'run')::double precision ELSE 0 END
$$;

CREATE FUNCTION begin_run() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO runs (job_id, attempt, started_at, model, node, effort)
    VALUES (NEW.id, NEW.attempt, now(), NEW.model, NEW.node, NEW.effort);
    RETURN NULL;
END $$;

CREATE FUNCTION end_run() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    how text;
    reported double precision;
BEGIN
    IF TG_OP = 'DELETE' THEN
        how := 'cancelled';
    ELSIF NEW.status = 'processing' THEN
        reported := gpu_seconds(NEW.outcome -> 'timings');
    ELSE
        how := CASE NEW.status WHEN 'queued' THEN 'retried' ELSE NEW.status END;
        IF NEW.timings <> OLD.timings THEN
            reported := greatest(gpu_seconds(NEW.timings) - gpu_seconds(OLD.timings), 0);
        END IF;
    END IF;
    UPDATE runs
       SET outcome = how,
           ended_at = coalesce(ended_at, greatest(started_at, now())),
           busy_s = coalesce(busy_s, least(reported, extract(epoch FROM greatest(started_at, now()) - started_at)))
     WHERE job_id = OLD.id AND attempt = OLD.attempt AND outcome IS NULL;
    RETURN NULL;
END $$;

CREATE TRIGGER jobs_run_started AFTER UPDATE OF status ON jobs FOR EACH ROW
    WHEN (OLD.status <> 'processing' AND NEW.status = 'processing' AND NEW.node <> '')
    EXECUTE FUNCTION begin_run();
CREATE TRIGGER jobs_run_ended AFTER UPDATE OF status, outcome ON jobs FOR EACH ROW
    WHEN (OLD.status = 'processing' AND OLD.node <> ''
          AND (NEW.status <> 'processing' OR (OLD.outcome IS NULL AND NEW.outcome IS NOT NULL)))
    EXECUTE FUNCTION end_run();
CREATE TRIGGER jobs_run_forgotten AFTER DELETE ON jobs FOR EACH ROW
    WHEN (OLD.status = 'processing' AND OLD.node <> '')
    EXECUTE FUNCTION end_run();
"""

#: Of each slot the machine that came to work. Those that were tried for it before or beside it, and orphans, are nodes
#: of their own, by their label: no job has run on them. Closed: nothing of it will change any more.
_NODE_BILLS = """
CREATE VIEW node_bills AS
SELECT rented.node,
       max(rented.node_type) AS node_type,
       coalesce(sum(cost.usd), 0) AS usd,
       coalesce((SELECT sum(busy_s) FROM runs WHERE runs.node = rented.node), 0) AS busy_s,
       bool_and(rented.state = 'ended')
           AND NOT EXISTS (SELECT FROM runs WHERE runs.node = rented.node AND ended_at IS NULL) AS closed
  FROM (SELECT slot_id AS node, label, node_type, state FROM rentals WHERE worked_at IS NOT NULL
         UNION ALL
        SELECT label, label, node_type, state FROM rentals WHERE worked_at IS NULL) rented
  LEFT JOIN LATERAL (
      SELECT sum(gpu_usd + storage_usd + bandwidth_usd) AS usd FROM node_costs WHERE label = rented.label) cost ON true
 GROUP BY rented.node
"""

#: Jobs that have ended, once the books of every rented node that they ran on are closed. A node that nobody has rented
#: costs nothing here. ``OFFSET 0`` keeps the planner from adding up all nodes for the sake of one job.
_JOB_COSTS = """
CREATE VIEW job_costs AS
SELECT share.job_id, sum(coalesce(share.busy_s / nullif(bill.busy_s, 0), 0) * bill.usd) AS cost_usd
  FROM (SELECT job_id, node, sum(busy_s) AS busy_s FROM runs GROUP BY job_id, node) share
 CROSS JOIN LATERAL (SELECT * FROM node_bills WHERE node_bills.node = share.node OFFSET 0) bill
 GROUP BY share.job_id
HAVING bool_and(bill.closed)
   AND NOT EXISTS (SELECT FROM jobs WHERE jobs.id = share.job_id AND jobs.completed_at IS NULL)
"""

#: For anybody who may see ``/metrics``: sums by type of node, state and kind of cost, and by model; no machine and no
#: price. What no job can be charged with any more is unattributed.
_FLEET_TOTALS = """
CREATE VIEW fleet_totals AS
WITH stretches AS (
    SELECT node_type, state, sum(extract(epoch FROM until - begun_at)) AS seconds, sum(gpu_usd) AS gpu,
           sum(storage_usd) AS storage, sum(bandwidth_usd) AS bandwidth
      FROM node_costs GROUP BY node_type, state
),
bills AS (SELECT * FROM node_bills),
charged AS (
    SELECT max(runs.model) AS model, bool_or(runs.outcome = 'completed') AS completed,
           sum(coalesce(runs.busy_s / nullif(bills.busy_s, 0), 0) * bills.usd) AS usd
      FROM runs JOIN bills ON bills.node = runs.node
     GROUP BY runs.job_id
    HAVING bool_and(bills.closed)
       AND NOT EXISTS (SELECT FROM jobs WHERE jobs.id = runs.job_id AND jobs.completed_at IS NULL)
)
SELECT 'gpu_seconds' AS name, node_type AS subject, state AS label, seconds::double precision AS value FROM stretches
UNION ALL
SELECT 'node_cost_usd', node_type, kind, sum(usd) FROM stretches
 CROSS JOIN LATERAL (VALUES ('gpu', gpu), ('storage', storage), ('bandwidth', bandwidth)) part (kind, usd)
 GROUP BY node_type, kind
UNION ALL
SELECT 'cold_start_seconds', node_type, '', sum(extract(epoch FROM worked_at - begun_at))::double precision
  FROM rentals WHERE worked_at >= begun_at GROUP BY node_type
UNION ALL
SELECT 'cold_starts', node_type, '', count(*)::double precision
  FROM rentals WHERE worked_at >= begun_at GROUP BY node_type
UNION ALL
SELECT 'job_cost_usd', model, CASE WHEN completed THEN 'completed' ELSE 'failed' END, sum(usd)
  FROM charged GROUP BY model, completed
UNION ALL
SELECT 'unattributed_usd', node_type, '', sum(usd) FROM bills WHERE closed AND busy_s = 0 GROUP BY node_type
"""


def _moment(name: str, **options: object) -> "sa.Column[object]":
    return sa.Column(name, sa.DateTime(timezone=True), **options)  # type: ignore[arg-type]


def upgrade() -> None:
    op.add_column("jobs", sa.Column("node", sa.Text(), server_default="", nullable=False))
    op.add_column("jobs", sa.Column("effort", sa.Double(), server_default="1", nullable=False))
    op.create_index("rentals_of_slot", "rentals", ["slot_id"])
    op.create_table(
        "runs",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        _moment("started_at", nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("effort", sa.Double(), nullable=False),
        _moment("ended_at", nullable=True),
        sa.Column("busy_s", sa.Double(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.CheckConstraint("node <> ''", name="runs_node_is_named"),
        sa.CheckConstraint("(ended_at IS NULL) = (busy_s IS NULL)", name="runs_end_is_measured"),
        sa.CheckConstraint("outcome IS NULL OR ended_at IS NOT NULL", name="runs_outcome_is_an_end"),
        sa.CheckConstraint("busy_s >= 0 AND ended_at >= started_at", name="runs_take_time"),
        sa.PrimaryKeyConstraint("job_id", "attempt", "started_at"),
    )
    op.create_index("runs_of_node", "runs", ["node"])
    op.create_index("runs_open", "runs", ["job_id", "attempt"], postgresql_where=sa.text("outcome IS NULL"))
    op.create_index(
        "runs_completed",
        "runs",
        ["model", sa.literal_column("ended_at DESC")],
        postgresql_where=sa.text("outcome = 'completed'"),
    )
    op.create_table(
        "outlooks",
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("start_s", sa.Double(), nullable=False),
        sa.Column("usd_per_hour_low", sa.Double(), nullable=True),
        sa.Column("usd_per_hour_high", sa.Double(), nullable=True),
        sa.Column("start_usd", sa.Double(), nullable=True),
        sa.Column("credit_usd", sa.Double(), nullable=True),
        _moment("seen_at", server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("(code IS NULL) = (message IS NULL)", name="outlooks_reason_is_said"),
        sa.CheckConstraint("start_s >= 0", name="outlooks_start_takes_time"),
        sa.PrimaryKeyConstraint("model"),
    )
    for statement in (_RUNS, _NODE_BILLS, _JOB_COSTS, _FLEET_TOTALS):
        op.execute(statement)


def downgrade() -> None:
    for view in _VIEWS:
        op.execute(f"DROP VIEW {view}")
    for trigger in _TRIGGERS:
        op.execute(f"DROP TRIGGER {trigger} ON jobs")
    for function in ("begin_run()", "end_run()", "gpu_seconds(jsonb)"):
        op.execute(f"DROP FUNCTION {function}")
    op.drop_table("outlooks")
    op.drop_table("runs")
    op.drop_index("rentals_of_slot", table_name="rentals")
    op.drop_column("jobs", "effort")
    op.drop_column("jobs", "node")
