"""whose job it is: the key that asked"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("key_id", sa.Text(), server_default="", nullable=False))
    owner = sa.Computed("key_id || '/' || coalesce(user_id, '')", persisted=True)
    op.add_column("jobs", sa.Column("owner", sa.Text(), owner, nullable=False))
    op.create_index(
        "jobs_newest_of_key", "jobs", ["key_id", sa.literal_column("created_at DESC"), sa.literal_column("id DESC")]
    )


def downgrade() -> None:
    op.drop_index("jobs_newest_of_key", table_name="jobs")
    op.drop_column("jobs", "owner")
    op.drop_column("jobs", "key_id")
