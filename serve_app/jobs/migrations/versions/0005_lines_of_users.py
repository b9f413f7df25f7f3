"""whose turn it is, by index; what each user has completed

Columns are described in ``serve_app/jobs/tables.py``; the triggers that keep those of ``turns`` are here alone.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_TRIGGERS = ("jobs_joined", "jobs_changed_places", "jobs_left", "jobs_emptied")

#: ``line_up`` looks up the best job of each line. Its locks come first: who has waited for one sees, in the statement
#: after, what its holder did to the jobs. So of two who change the same line at once the second gets it right. Whoever
#: locks several lines does so in one order, or is the only one to (claims), or does not wait (retention).
_LINES = """
CREATE FUNCTION line_up(queues text[], users text[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO turns (queue, user_id, turn)
    SELECT DISTINCT line.queue, line.user_id, 0 FROM unnest(queues, users) line (queue, user_id) ORDER BY 1, 2
    ON CONFLICT (queue, user_id) DO UPDATE SET turn = turns.turn WHERE false;

    UPDATE turns SET priority = head.priority, since = head.created_at, later = head.later
      FROM (
        SELECT line.queue, line.user_id, best.priority, best.created_at,
               CASE WHEN best.created_at IS NOT NULL THEN NULL
                    WHEN line.queue = '' THEN (
                        SELECT min(not_before) FROM jobs
                         WHERE status = 'queued' AND lease_token IS NULL AND inputs IS NULL
                           AND coalesce(user_id, '') = line.user_id)
                    ELSE (
                        SELECT min(not_before) FROM jobs
                         WHERE status = 'queued' AND lease_token IS NULL AND inputs IS NOT NULL
                           AND model = line.queue AND coalesce(user_id, '') = line.user_id)
               END AS later
          FROM unnest(queues, users) line (queue, user_id)
          LEFT JOIN LATERAL (
              (SELECT priority, created_at FROM jobs
                WHERE line.queue <> '' AND status = 'queued' AND lease_token IS NULL AND inputs IS NOT NULL
                  AND model = line.queue AND coalesce(user_id, '') = line.user_id AND not_before <= now()
                ORDER BY priority DESC, created_at LIMIT 1)
              UNION ALL
              (SELECT priority, created_at FROM jobs
                WHERE line.queue = '' AND status = 'queued' AND lease_token IS NULL AND inputs IS NULL
                  AND coalesce(user_id, '') = line.user_id AND not_before <= now()
                ORDER BY priority DESC, created_at LIMIT 1)
          ) best ON true
      ) head
     WHERE turns.queue = head.queue AND turns.user_id = head.user_id
       AND (turns.priority, turns.since, turns.later) IS DISTINCT FROM (head.priority, head.created_at, head.later);
END $$;

CREATE FUNCTION line_up_jobs() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    queues text[] := '{}';
    users text[] := '{}';
BEGIN
    IF TG_OP = 'INSERT' THEN
        SELECT array_agg(queue), array_agg(user_id) INTO queues, users FROM (
            SELECT DISTINCT CASE WHEN inputs IS NULL THEN '' ELSE model END AS queue, coalesce(user_id, '') AS user_id
              FROM changed WHERE status = 'queued' AND lease_token IS NULL) joined;
    ELSIF TG_OP = 'TRUNCATE' THEN
        UPDATE turns SET priority = NULL, since = NULL, later = NULL WHERE since IS NOT NULL OR later IS NOT NULL;
    ELSE
        IF OLD.status = 'queued' AND OLD.lease_token IS NULL THEN
            queues := ARRAY[CASE WHEN OLD.inputs IS NULL THEN '' ELSE OLD.model END];
            users := ARRAY[coalesce(OLD.user_id, '')];
        END IF;
        IF TG_OP = 'UPDATE' AND NEW.status = 'queued' AND NEW.lease_token IS NULL THEN
            queues := queues || CASE WHEN NEW.inputs IS NULL THEN '' ELSE NEW.model END;
            users := users || coalesce(NEW.user_id, '');
        END IF;
    END IF;
    IF cardinality(queues) > 0 THEN
        PERFORM line_up(queues, users);
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER jobs_joined AFTER INSERT ON jobs REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION line_up_jobs();
CREATE TRIGGER jobs_changed_places
    AFTER UPDATE OF status, lease_token, inputs, model, user_id, priority, created_at, not_before ON jobs FOR EACH ROW
    WHEN ((OLD.status = 'queued' AND OLD.lease_token IS NULL OR NEW.status = 'queued' AND NEW.lease_token IS NULL)
          AND (OLD.status, OLD.lease_token, OLD.inputs IS NULL, OLD.model, OLD.user_id, OLD.priority, OLD.created_at,
               OLD.not_before)
              IS DISTINCT FROM
              (NEW.status, NEW.lease_token, NEW.inputs IS NULL, NEW.model, NEW.user_id, NEW.priority, NEW.created_at,
               NEW.not_before))
    EXECUTE FUNCTION line_up_jobs();
CREATE TRIGGER jobs_left AFTER DELETE ON jobs FOR EACH ROW
    WHEN (OLD.status = 'queued' AND OLD.lease_token IS NULL)
    EXECUTE FUNCTION line_up_jobs();
CREATE TRIGGER jobs_emptied AFTER TRUNCATE ON jobs FOR EACH STATEMENT EXECUTE FUNCTION line_up_jobs();
"""


def upgrade() -> None:
    op.add_column("turns", sa.Column("priority", sa.SmallInteger(), nullable=True))
    op.add_column("turns", sa.Column("since", sa.DateTime(timezone=True), nullable=True))
    op.add_column("turns", sa.Column("later", sa.DateTime(timezone=True), nullable=True))
    op.create_index(
        "turns_next",
        "turns",
        ["queue", "turn", sa.literal_column("priority DESC"), "since"],
        postgresql_where=sa.text("since IS NOT NULL"),
    )
    op.create_index("turns_later", "turns", ["queue", "later"], postgresql_where=sa.text("later IS NOT NULL"))
    idle = sa.text("since IS NULL AND later IS NULL")
    op.create_index("turns_oldest", "turns", ["served_at"], postgresql_where=idle)
    op.create_index(
        "jobs_completed_of_user",
        "jobs",
        [sa.literal_column("coalesce(user_id, '')"), sa.literal_column("completed_at DESC")],
        postgresql_where=sa.text("status = 'completed'"),
    )
    # The triggers first: they lock out writers, so nobody joins a line unseen before those who wait already have.
    op.execute(_LINES)
    op.execute(
        """
        SELECT line_up(array_agg(queue), array_agg(user_id)) FROM (
            SELECT DISTINCT CASE WHEN inputs IS NULL THEN '' ELSE model END AS queue, coalesce(user_id, '') AS user_id
              FROM jobs WHERE status = 'queued' AND lease_token IS NULL) waiting
        """
    )


def downgrade() -> None:
    for trigger in _TRIGGERS:
        op.execute(f"DROP TRIGGER {trigger} ON jobs")
    op.execute("DROP FUNCTION line_up_jobs()")
    op.execute("DROP FUNCTION line_up(text[], text[])")
    op.drop_index("jobs_completed_of_user", table_name="jobs")
    op.drop_index("turns_oldest", table_name="turns")
    op.drop_index("turns_later", table_name="turns")
    op.drop_index("turns_next", table_name="turns")
    for column in ("later", "since", "priority"):
        op.drop_column("turns", column)
