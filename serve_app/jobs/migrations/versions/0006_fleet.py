"""what is rented, and what it costs

Described where it is used, in ``cluster/fleet/tables.py``; a test compares the two.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def _amount(name: str) -> "sa.Column[float]":
    return sa.Column(name, sa.Double(), server_default="0", nullable=False)


def _moment(name: str, *, there: bool = False) -> "sa.Column[object]":
    return sa.Column(name, sa.DateTime(timezone=True), nullable=not there)


def upgrade() -> None:
    op.create_table(
        "fleet_terms",
        sa.Column("one", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("term", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("one = 1", name="fleet_terms_one_row"),
        sa.PrimaryKeyConstraint("one"),
    )
    op.create_table(
        "rentals",
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("slot_id", sa.Text(), nullable=False),
        sa.Column("node_type", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        _moment("since", there=True),
        _moment("reserved_at", there=True),
        sa.Column("offer", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        _amount("gpu_usd_per_hour"),
        _amount("storage_usd_per_hour"),
        _amount("down_usd_per_gb"),
        _amount("up_usd_per_gb"),
        _amount("start_s"),
        _amount("start_bytes"),
        _amount("image_bytes"),
        sa.Column("instance", sa.Text(), nullable=True),
        sa.Column("door_key", sa.Text(), nullable=True),
        _moment("begun_at"),
        _moment("destroyed_at"),
        _moment("ended_at"),
        _moment("worked_at"),
        sa.Column("why", sa.Text(), nullable=True),
        sa.Column("detail", sa.Text(), server_default="", nullable=False),
        _amount("down_bytes"),
        _amount("up_bytes"),
        _moment("stretch_at", there=True),
        _amount("stretch_down"),
        _amount("stretch_up"),
        sa.CheckConstraint("(state = 'ended') = (ended_at IS NOT NULL)", name="rentals_end_is_dated"),
        sa.CheckConstraint("state NOT IN ('ending', 'ended') OR why IS NOT NULL", name="rentals_end_has_a_reason"),
        sa.CheckConstraint("(instance IS NULL) = (begun_at IS NULL)", name="rentals_begin_is_dated"),
        sa.PrimaryKeyConstraint("label"),
    )
    op.create_index("rentals_open", "rentals", ["label"], postgresql_where=sa.text("state <> 'ended'"))
    op.create_table(
        "node_costs",
        sa.Column("label", sa.Text(), nullable=False),
        _moment("begun_at", there=True),
        _moment("until", there=True),
        sa.Column("node_type", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        _amount("gpu_usd"),
        _amount("storage_usd"),
        _amount("bandwidth_usd"),
        sa.CheckConstraint("begun_at < until", name="node_costs_takes_time"),
        sa.ForeignKeyConstraint(["label"], ["rentals.label"]),
        sa.PrimaryKeyConstraint("label", "begun_at"),
    )
    op.create_index("node_costs_by_day", "node_costs", ["begun_at"])
    op.create_table(
        "blocked_hosts",
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        _moment("until", there=True),
        sa.PrimaryKeyConstraint("host"),
    )
    op.create_table(
        "breakers",
        sa.Column("node_type", sa.Text(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        _moment("closed_until"),
        sa.PrimaryKeyConstraint("node_type"),
    )


def downgrade() -> None:
    for table in ("breakers", "blocked_hosts", "node_costs", "rentals", "fleet_terms"):
        op.drop_table(table)
