"""Metrics of rented machines, as far as the launcher lets the service see them."""

from collections.abc import Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.jobs.conditions import EVERY_MODEL, believed
from serve_app.jobs.outlooks import known
from serve_app.jobs.tables import fleet_totals

#: By name in ``fleet_totals``: the metric, its text, and what subject and label are there.
_COUNTERS: Mapping[str, tuple[str, str, tuple[str, str]]] = {
    "node_cost_usd": ("video_node_cost_usd", "Dollars that rented machines have cost.", ("node_type", "kind")),
    "gpu_seconds": (
        "video_gpu_seconds",
        "Seconds that were paid for, by what the machine did.",
        ("node_type", "state"),
    ),
    "job_cost_usd": (
        "video_job_cost_usd",
        "Dollars that jobs have cost whose books are closed, by how they ended.",
        ("model", "status"),
    ),
}


async def totals(db: AsyncConnection) -> Sequence[Metric]:
    """Sums over all rentals and jobs."""
    rows = (await db.execute(select(fleet_totals))).all()
    found: dict[str, dict[tuple[str, str], float]] = {}
    for row in rows:
        found.setdefault(row.name, {})[row.subject, row.label] = row.value
    families: list[Metric] = []
    for name, (metric, text, labels) in _COUNTERS.items():
        counter = CounterMetricFamily(metric, text, labels=labels)
        for values, value in found.get(name, {}).items():
            counter.add_metric(values, value)
        families.append(counter)
    starts = SummaryMetricFamily(
        "video_cold_start_seconds", "Seconds from a machine's rent until it could work.", labels=("node_type",)
    )
    for (node_type, _), count in found.get("cold_starts", {}).items():
        starts.add_metric((node_type,), int(count), found["cold_start_seconds"][node_type, ""])
    families.append(starts)
    lost = GaugeMetricFamily(
        "video_unattributed_usd", "Dollars of machines that have made no job's attempt.", labels=("node_type",)
    )
    for (node_type, _), usd in found.get("unattributed_usd", {}).items():
        lost.add_metric((node_type,), usd)
    return [*families, lost]


async def collect(db: AsyncConnection) -> Sequence[Metric]:
    """What stands in the way of jobs, and what the launcher expects of machines. Of a model with several deployments
    each is told by its own name, e.g. ``ltx2-40gb``."""
    waits = GaugeMetricFamily("video_waits", "1 while this keeps jobs waiting.", labels=("model", "code"))
    for subject, condition in (await believed(db)).items():
        waits.add_metric(("" if subject == EVERY_MODEL else subject, condition.code), 1)
    start = GaugeMetricFamily("video_start_seconds", "Seconds that a start is expected to take.", labels=("model",))
    price = GaugeMetricFamily(
        "video_usd_per_hour", "Dollars for a machine that would be taken now.", labels=("model", "bound")
    )
    credit = GaugeMetricFamily("video_credit_usd", "Dollars that the provider's account has left.")
    outlooks = await known(db)
    left = [outlook.credit_usd for outlook in outlooks.values() if outlook.credit_usd is not None]
    if left:
        credit.add_metric((), min(left))
    for deployment, outlook in outlooks.items():
        start.add_metric((deployment,), outlook.start_s)
        for bound, usd in (("low", outlook.usd_per_hour_low), ("high", outlook.usd_per_hour_high)):
            if usd is not None:
                price.add_metric((deployment, bound), usd)
    return [waits, start, price, credit]
