"""how fast a rental's line is, whether it is a bid, and what the provider charged for it"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("rentals", sa.Column("bid", sa.Boolean(), server_default="false", nullable=False))
    op.add_column("rentals", sa.Column("charged_usd", sa.Double(), nullable=True))
    op.add_column("rentals", sa.Column("line_mbps", sa.Double(), server_default="0", nullable=False))


def downgrade() -> None:
    op.drop_column("rentals", "line_mbps")
    op.drop_column("rentals", "charged_usd")
    op.drop_column("rentals", "bid")
