"""how fast a rental's line is, since its start may take as long as that explains; and whether it is a bid"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("rentals", sa.Column("bid", sa.Boolean(), server_default="false", nullable=False))
    op.add_column("rentals", sa.Column("line_mbps", sa.Double(), server_default="0", nullable=False))


def downgrade() -> None:
    op.drop_column("rentals", "line_mbps")
    op.drop_column("rentals", "bid")
