"""deliveries know their owner, their host and where they are

Existing rows that are still owed wait for their time; the next sender takes them by turns.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("deliveries", sa.Column("owner", sa.Text(), server_default="", nullable=False))
    op.add_column("deliveries", sa.Column("host", sa.Text(), server_default="", nullable=False))
    op.add_column("deliveries", sa.Column("state", sa.Text(), server_default="due", nullable=False))
    op.execute(
        """
        UPDATE deliveries SET owner = coalesce(jobs.user_id, ''), state = 'waiting',
               host = coalesce(lower(substring(deliveries.url from '^[a-z]+://([^/:?#]+)')), '')
          FROM jobs WHERE jobs.id = deliveries.job_id AND deliveries.next_attempt_at IS NOT NULL
        """
    )
    op.create_check_constraint("deliveries_state_known", "deliveries", "state IN ('due', 'waiting', 'sending')")
    op.drop_index("deliveries_due", table_name="deliveries")
    owed = "next_attempt_at IS NOT NULL"
    for name, columns, states in (
        ("deliveries_due", ["owner", "host", "next_attempt_at"], "state = 'due'"),
        ("deliveries_sending", ["owner", "host"], "state = 'sending'"),
        ("deliveries_later", ["next_attempt_at"], "state <> 'due'"),
    ):
        op.create_index(name, "deliveries", columns, unique=False, postgresql_where=sa.text(f"{states} AND {owed}"))


def downgrade() -> None:
    for name in ("deliveries_later", "deliveries_sending", "deliveries_due"):
        op.drop_index(name, table_name="deliveries")
    op.create_index(
        "deliveries_due",
        "deliveries",
        ["next_attempt_at"],
        unique=False,
        postgresql_where=sa.text("next_attempt_at IS NOT NULL"),
    )
    op.drop_constraint("deliveries_state_known", "deliveries", type_="check")
    for name in ("state", "host", "owner"):
        op.drop_column("deliveries", name)
