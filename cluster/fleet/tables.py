"""The fleet's tables. The launcher's alone: the service's role may neither read nor write them."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    text,
)

metadata = MetaData()


def _amount(name: str) -> Column[float]:
    return Column(name, Double, nullable=False, server_default="0")


def _moment(name: str, *, there: bool = False) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=not there)


#: One row: how often a head has taken over. Whoever writes names his own number, so one that was replaced can't.
fleet_terms = Table(
    "fleet_terms",
    metadata,
    Column("one", SmallInteger, primary_key=True, autoincrement=False),
    Column("term", BigInteger, nullable=False),
    CheckConstraint("one = 1", name="fleet_terms_one_row"),
)

rentals = Table(
    "rentals",
    metadata,
    Column("label", Text, primary_key=True),
    Column("slot_id", Text, nullable=False),
    Column("node_type", Text, nullable=False),
    Column("state", Text, nullable=False),
    _moment("since", there=True),
    _moment("reserved_at", there=True),
    Column("offer", Text, nullable=False),
    Column("host", Text, nullable=False),
    #: Dollars, fixed when it was rented.
    _amount("gpu_usd_per_hour"),
    _amount("storage_usd_per_hour"),
    _amount("down_usd_per_gb"),
    _amount("up_usd_per_gb"),
    Column("bid", Boolean, nullable=False, server_default="false"),
    _amount("start_s"),
    _amount("start_bytes"),
    _amount("image_bytes"),
    _amount("line_mbps"),
    Column("instance", Text),
    Column("door_key", Text),
    _moment("begun_at"),
    _moment("destroyed_at"),
    _moment("ended_at"),
    _moment("worked_at"),
    Column("why", Text),
    Column("detail", Text, nullable=False, server_default=""),
    _amount("down_bytes"),
    _amount("up_bytes"),
    _moment("stretch_at", there=True),
    _amount("stretch_down"),
    _amount("stretch_up"),
    #: By the provider itself; null until it has said so.
    Column("charged_usd", Double),
    CheckConstraint("(state = 'ended') = (ended_at IS NOT NULL)", name="rentals_end_is_dated"),
    CheckConstraint("state NOT IN ('ending', 'ended') OR why IS NOT NULL", name="rentals_end_has_a_reason"),
    CheckConstraint("(instance IS NULL) = (begun_at IS NULL)", name="rentals_begin_is_dated"),
    Index("rentals_open", "label", postgresql_where=text("state <> 'ended'")),
    Index("rentals_of_slot", "slot_id"),
)

node_costs = Table(
    "node_costs",
    metadata,
    Column("label", Text, ForeignKey("rentals.label"), primary_key=True),
    Column("begun_at", DateTime(timezone=True), primary_key=True),
    _moment("until", there=True),
    Column("node_type", Text, nullable=False),
    Column("state", Text, nullable=False),
    _amount("gpu_usd"),
    _amount("storage_usd"),
    _amount("bandwidth_usd"),
    CheckConstraint("begun_at < until", name="node_costs_takes_time"),
    Index("node_costs_by_day", "begun_at"),
)

blocked_hosts = Table(
    "blocked_hosts",
    metadata,
    Column("host", Text, primary_key=True),
    Column("why", Text, nullable=False),
    _moment("until", there=True),
)

breakers = Table(
    "breakers",
    metadata,
    Column("node_type", Text, primary_key=True),
    Column("failures", Integer, nullable=False),
    _moment("closed_until"),
)
