"""fair between keys: lines by owner, the user of a key

Columns are described in ``serve_app/jobs/tables.py``; the triggers that keep those of ``turns`` are here alone. They
are those of migration 0005 with the owner for the user, and take their place.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_TRIGGERS = ("jobs_joined", "jobs_changed_places", "jobs_left", "jobs_emptied")

#: ``line_up`` looks up the best job of each line. Its locks come first: who has waited for one sees, in the statement
#: after, what its holder did to the jobs. So of two who change the same line at once the second gets it right. Whoever
#: locks several lines does so in one order, or is the only one to (claims), or does not wait (retention).
_LINES = """
CREATE FUNCTION line_up(queues text[], owners text[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO turns (queue, owner, turn)
    SELECT DISTINCT line.queue, line.owner, 0 FROM unnest(queues, owners) line (queue, owner) ORDER BY 1, 2
    ON CONFLICT (queue, owner) DO UPDATE SET turn = turns.turn WHERE false;

    UPDATE turns SET priority = head.priority, since = head.created_at, later = head.later
      FROM (
        SELECT line.queue, line.owner, best.priority, best.created_at,
               CASE WHEN best.created_at IS NOT NULL THEN NULL
                    WHEN line.queue = '' THEN (
                        SELECT min(not_before) FROM jobs
                         WHERE status = 'queued' AND lease_token IS NULL AND inputs IS NULL AND owner = line.owner)
                    ELSE (
                        SELECT min(not_before) FROM jobs
                         WHERE status = 'queued' AND lease_token IS NULL AND inputs IS NOT NULL
                           AND model = line.queue AND owner = line.owner)
               END AS later
          FROM unnest(queues, owners) line (queue, owner)
          LEFT JOIN LATERAL (
              (SELECT priority, created_at FROM jobs
                WHERE line.queue <> '' AND status = 'queued' AND lease_token IS NULL AND inputs IS NOT NULL
                  AND model = line.queue AND owner = line.owner AND not_before <= now()
                ORDER BY priority DESC, created_at LIMIT 1)
              UNION ALL
              (SELECT priority, created_at FROM jobs
                WHERE line.queue = '' AND status = 'queued' AND lease_token IS NULL AND inputs IS NULL
                  AND owner = line.owner AND not_before <= now()
                ORDER BY priority DESC, created_at LIMIT 1)
          ) best ON true
      ) head
     WHERE turns.queue = head.queue AND turns.owner = head.owner
       AND (turns.priority, turns.since, turns.later) IS DISTINCT FROM (head.priority, head.created_at, head.later);
END $$;

CREATE FUNCTION line_up_jobs() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    queues text[] := '{}';
    owners text[] := '{}';
BEGIN
    IF TG_OP = 'INSERT' THEN
        SELECT array_agg(queue), array_agg(owner) INTO queues, owners FROM (
            SELECT DISTINCT CASE WHEN inputs IS NULL THEN '' ELSE model END AS queue, owner
              FROM changed WHERE status = 'queued' AND lease_token IS NULL) joined;
    ELSIF TG_OP = 'TRUNCATE' THEN
        UPDATE turns SET priority = NULL, since = NULL, later = NULL WHERE since IS NOT NULL OR later IS NOT NULL;
    ELSE
        IF OLD.status = 'queued' AND OLD.lease_token IS NULL THEN
            queues := ARRAY[CASE WHEN OLD.inputs IS NULL THEN '' ELSE OLD.model END];
            owners := ARRAY[OLD.owner];
        END IF;
        IF TG_OP = 'UPDATE' AND NEW.status = 'queued' AND NEW.lease_token IS NULL THEN
            queues := queues || CASE WHEN NEW.inputs IS NULL THEN '' ELSE NEW.model END;
            owners := owners || NEW.owner;
        END IF;
    END IF;
    IF cardinality(queues) > 0 THEN
        PERFORM line_up(queues, owners);
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER jobs_joined AFTER INSERT ON jobs REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION line_up_jobs();
CREATE TRIGGER jobs_changed_places
    AFTER UPDATE OF status, lease_token, inputs, model, key_id, user_id, priority, created_at, not_before
    ON jobs FOR EACH ROW
    WHEN ((OLD.status = 'queued' AND OLD.lease_token IS NULL OR NEW.status = 'queued' AND NEW.lease_token IS NULL)
          AND (OLD.status, OLD.lease_token, OLD.inputs IS NULL, OLD.model, OLD.owner, OLD.priority, OLD.created_at,
               OLD.not_before)
              IS DISTINCT FROM
              (NEW.status, NEW.lease_token, NEW.inputs IS NULL, NEW.model, NEW.owner, NEW.priority, NEW.created_at,
               NEW.not_before))
    EXECUTE FUNCTION line_up_jobs();
CREATE TRIGGER jobs_left AFTER DELETE ON jobs FOR EACH ROW
    WHEN (OLD.status = 'queued' AND OLD.lease_token IS NULL)
    EXECUTE FUNCTION line_up_jobs();
CREATE TRIGGER jobs_emptied AFTER TRUNCATE ON jobs FOR EACH STATEMENT EXECUTE FUNCTION line_up_jobs();
"""

#: After the triggers: they lock out writers, so nobody joins a line unseen before those who wait already have.
_LINE_UP = """
SELECT line_up(array_agg(queue), array_agg(owner)) FROM (
    SELECT DISTINCT CASE WHEN inputs IS NULL THEN '' ELSE model END AS queue, {owner} AS owner
      FROM jobs WHERE status = 'queued' AND lease_token IS NULL) waiting
"""

_USER = "coalesce(user_id, '')"


def upgrade() -> None:
    _drop_triggers()
    # All keys' users have been in one line until now. Whoever waits joins his own below.
    op.drop_index("turns_next", table_name="turns")
    op.add_column("turns", sa.Column("owner", sa.Text(), nullable=True))
    op.execute("UPDATE turns SET owner = '/' || user_id, priority = NULL, since = NULL, later = NULL")
    _name_lines("owner", "user_id")
    key = sa.Computed("split_part(owner, '/', 1)", persisted=True)
    op.add_column("turns", sa.Column("key_id", sa.Text(), key, nullable=False))
    _lines("queue", "key_id")
    op.create_index("turns_of_key", "turns", ["queue", "key_id", "turn"])
    _index_jobs("owner", "jobs_completed_of_owner", "jobs_completed_of_user", "key_id")
    op.execute("UPDATE deliveries SET owner = jobs.owner FROM jobs WHERE jobs.id = deliveries.job_id")
    _index_deliveries(sa.literal_column("split_part(owner, '/', 1)"), "owner")
    op.execute(_LINES)
    op.execute(_LINE_UP.format(owner="owner"))


def downgrade() -> None:
    _drop_triggers()
    _index_deliveries("owner")
    op.execute("UPDATE deliveries SET owner = substr(owner, strpos(owner, '/') + 1)")
    _index_jobs(_USER, "jobs_completed_of_user", "jobs_completed_of_owner")
    # Users of several keys may be called the same; whose turn it was is forgotten.
    op.execute("DELETE FROM turns")
    op.drop_index("turns_of_key", table_name="turns")
    op.drop_index("turns_next", table_name="turns")
    op.drop_column("turns", "key_id")
    op.add_column("turns", sa.Column("user_id", sa.Text(), nullable=True))
    _name_lines("user_id", "owner")
    _lines("queue")
    before: Any = op.get_context().script
    op.execute(before.get_revision("0005").module._LINES)
    op.execute(_LINE_UP.format(owner=_USER))


def _drop_triggers() -> None:
    for trigger in _TRIGGERS:
        op.execute(f"DROP TRIGGER {trigger} ON jobs")
    op.execute("DROP FUNCTION line_up_jobs()")
    op.execute("DROP FUNCTION line_up(text[], text[])")


def _name_lines(by: str, before: str) -> None:
    # A column that is renamed keeps the name of its constraint.
    op.alter_column("turns", by, nullable=False)
    op.drop_column("turns", before)
    op.create_primary_key("turns_pkey", "turns", ["queue", by])


def _lines(*of: str) -> None:
    op.create_index(
        "turns_next",
        "turns",
        [*of, "turn", sa.literal_column("priority DESC"), "since"],
        postgresql_where=sa.text("since IS NOT NULL"),
    )


def _index_jobs(owner: str, completed: str, completed_before: str, *key: str) -> None:
    waiting = "status = 'queued' AND lease_token IS NULL"
    for name, first, where in (
        ("jobs_waiting", ["model", *key], waiting),
        ("jobs_to_run", ["model"], f"{waiting} AND inputs IS NOT NULL"),
        ("jobs_to_take_in", [], f"{waiting} AND inputs IS NULL"),
    ):
        op.drop_index(name, table_name="jobs")
        columns = [*first, sa.literal_column(owner), sa.literal_column("priority DESC"), "created_at"]
        op.create_index(name, "jobs", columns, postgresql_where=sa.text(where))
    op.drop_index(completed_before, table_name="jobs")
    ended = [sa.literal_column(owner), sa.literal_column("completed_at DESC")]
    op.create_index(completed, "jobs", ended, postgresql_where=sa.text("status = 'completed'"))


def _index_deliveries(*of: Any) -> None:
    op.drop_index("deliveries_due", table_name="deliveries")
    due = sa.text("state = 'due' AND next_attempt_at IS NOT NULL")
    op.create_index("deliveries_due", "deliveries", [*of, "host", "next_attempt_at"], postgresql_where=due)
