"""one deployment of a model for each class of GPU memory

Jobs and runs that are there are of their model's first deployment, which has the model's name. Columns are described in
``serve_app/jobs/tables.py``; the triggers are those of migrations 0003, 0007 and 0011, by deployment.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

_TALLY = """
CREATE OR REPLACE FUNCTION tally_jobs() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO job_tally (model, deployment, status, n)
        SELECT model, deployment, status, count(*) FROM changed WHERE model IS NOT NULL GROUP BY 1, 2, 3;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO job_tally (model, deployment, status, n)
        SELECT model, deployment, status, -count(*) FROM changed WHERE model IS NOT NULL GROUP BY 1, 2, 3;
    ELSIF TG_OP = 'TRUNCATE' THEN
        DELETE FROM job_tally;
    ELSE
        IF OLD.model IS NOT NULL THEN
            INSERT INTO job_tally (model, deployment, status, n) VALUES (OLD.model, OLD.deployment, OLD.status, -1);
        END IF;
        IF NEW.model IS NOT NULL THEN
            INSERT INTO job_tally (model, deployment, status, n) VALUES (NEW.model, NEW.deployment, NEW.status, 1);
        END IF;
    END IF;
    RETURN NULL;
END $$;
"""

_MOVED = """
DROP TRIGGER jobs_moved ON jobs;
CREATE TRIGGER jobs_moved AFTER UPDATE OF status, model, assigned ON jobs FOR EACH ROW
    WHEN ((OLD.status, OLD.model, OLD.deployment) IS DISTINCT FROM (NEW.status, NEW.model, NEW.deployment))
    EXECUTE FUNCTION tally_jobs();
"""

_RUNS = """
CREATE OR REPLACE FUNCTION begin_run() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO runs (job_id, attempt, started_at, model, assigned, node, effort)
    VALUES (NEW.id, NEW.attempt, now(), NEW.model, NEW.assigned, NEW.node, NEW.effort);
    RETURN NULL;
END $$;
"""

_CHANGED_PLACES = """
DROP TRIGGER jobs_changed_places ON jobs;
CREATE TRIGGER jobs_changed_places
    AFTER UPDATE OF status, lease_token, inputs, model, assigned, key_id, user_id, priority, created_at, not_before
    ON jobs FOR EACH ROW
    WHEN ((OLD.status = 'queued' AND OLD.lease_token IS NULL OR NEW.status = 'queued' AND NEW.lease_token IS NULL)
          AND (OLD.status, OLD.lease_token, OLD.inputs IS NULL, OLD.deployment, OLD.owner, OLD.priority, OLD.created_at,
               OLD.not_before)
              IS DISTINCT FROM
              (NEW.status, NEW.lease_token, NEW.inputs IS NULL, NEW.deployment, NEW.owner, NEW.priority, NEW.created_at,
               NEW.not_before))
    EXECUTE FUNCTION line_up_jobs();
"""

_WAITING = "status = 'queued' AND lease_token IS NULL"
_OWNERS: tuple[Any, ...] = ("owner", sa.literal_column("priority DESC"), "created_at")


def upgrade() -> None:
    op.create_table(
        "abilities",
        sa.Column("deployment", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("gib", sa.SmallInteger(), nullable=True),
        sa.Column("had_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("said", postgresql.JSONB(), nullable=False, server_default=sa.text("'{}'")),
        sa.PrimaryKeyConstraint("deployment"),
    )
    for table in ("jobs", "runs"):
        first = sa.Computed("coalesce(assigned, model)", persisted=True)
        op.add_column(table, sa.Column("assigned", sa.Text(), nullable=True))
        op.add_column(table, sa.Column("deployment", sa.Text(), first, nullable=True))
    op.add_column("job_tally", sa.Column("deployment", sa.Text(), nullable=True))
    op.execute("UPDATE job_tally SET deployment = model")
    op.alter_column("job_tally", "deployment", nullable=False)
    _name_outlooks("deployment", "model")
    _index("deployment")
    op.execute(_TALLY)
    op.execute(_MOVED)
    op.execute(_RUNS)
    op.execute(_lines().replace("model = line.queue", "deployment = line.queue"))
    op.execute(_lining_up().replace("ELSE model", "ELSE deployment").replace(".model", ".deployment"))
    op.execute(_CHANGED_PLACES)


def downgrade() -> None:
    # What was for another deployment than the first waits for the first, so that its model makes it at all.
    op.execute("UPDATE jobs SET assigned = NULL WHERE assigned IS NOT NULL")
    op.execute("DELETE FROM turns WHERE queue <> '' AND queue NOT IN (SELECT model FROM jobs WHERE model IS NOT NULL)")
    op.execute(_lines())
    op.execute(_lining_up())
    changed = _CHANGED_PLACES.replace("model, assigned,", "model,").replace(".deployment", ".model")
    op.execute(changed)
    op.execute(_replaced("0007", "_RUNS", "FUNCTION begin_run()"))
    op.execute(_replaced("0003", "_TALLY", "FUNCTION tally_jobs()"))
    op.execute(_MOVED.replace("model, assigned", "model").replace(".deployment", ".model"))
    _index("model")
    _name_outlooks("model", "deployment")
    op.drop_column("job_tally", "deployment")
    for table in ("jobs", "runs"):
        op.drop_column(table, "deployment")
        op.drop_column(table, "assigned")
    op.drop_table("abilities")


def _index(by: str) -> None:
    indexes: tuple[tuple[str, list[Any], str], ...] = (
        ("jobs_waiting", [by, "key_id", *_OWNERS], _WAITING),
        ("jobs_to_run", [by, *_OWNERS], f"{_WAITING} AND inputs IS NOT NULL"),
    )
    for name, columns, where in indexes:
        op.drop_index(name, table_name="jobs")
        op.create_index(name, "jobs", columns, postgresql_where=sa.text(where))
    op.drop_index("runs_completed", table_name="runs")
    latest: list[Any] = [by, sa.literal_column("ended_at DESC")]
    op.create_index("runs_completed", "runs", latest, postgresql_where=sa.text("outcome = 'completed'"))


def _name_outlooks(by: str, before: str) -> None:
    # A column that is renamed keeps the name of its constraint.
    op.add_column("outlooks", sa.Column(by, sa.Text(), nullable=True))
    op.execute(f"UPDATE outlooks SET {by} = {before}")  # noqa: S608 - constants only
    op.alter_column("outlooks", by, nullable=False)
    op.drop_column("outlooks", before)
    op.create_primary_key("outlooks_pkey", "outlooks", [by])


def _lines() -> str:
    return _replaced("0011", "_LINES", "FUNCTION line_up(")


def _lining_up() -> str:
    return _replaced("0011", "_LINES", "FUNCTION line_up_jobs()")


def _replaced(revision: str, name: str, function: str) -> str:
    """The function as that migration makes it, in the place of the one that there is."""
    script: Any = op.get_context().script
    made: str = getattr(script.get_revision(revision).module, name)
    begin = made.index(f"CREATE {function}")
    return f"CREATE OR REPLACE {made[begin : made.index('END $$;', begin)].removeprefix('CREATE ')}END $$;"
