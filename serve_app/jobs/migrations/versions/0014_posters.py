"""the first frame"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # The videos that are there have none.
    op.add_column("jobs", sa.Column("poster_key", sa.Text()))


def downgrade() -> None:
    op.drop_column("jobs", "poster_key")
