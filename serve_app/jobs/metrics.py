"""Metrics of jobs, counted in the transaction that ends a job: exact, and the same on every replica after any restart.

The head adds those of the mesh.
"""

from collections.abc import Iterable, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from deployments.failure_code import FailureCode
from deployments.registry import MODELS
from serve_app.jobs.job import AWAITING, Job, Status
from serve_app.jobs.tables import counters

ENDED = "video_jobs"
RETRIES = "video_job_retries"
GPU_BUSY = "video_gpu_busy_seconds"
STAGE = "video_job_stage_seconds"
WAITED = "video_job_wait_seconds"

BUCKETS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)

_COUNTERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    ENDED: ("Jobs that ended, by outcome and error code.", ("model", "status", "code")),
    RETRIES: ("Attempts that failed and were followed by another.", ("model", "code")),
    GPU_BUSY: ("Seconds a GPU computed, failed attempts included.", ("model",)),
    "video_mesh_flows": ("Connections that the head has carried between nodes.", ()),
    "video_mesh_bytes": ("Bytes from and to nodes, framing included, TLS not.", ("direction",)),
    "video_mesh_reconnects": ("Times that a node came back.", ()),
    "video_mesh_dead_flows": ("Connections that were cut because their path had died.", ()),
    "video_mesh_refused": ("Connections that were refused.", ("reason",)),
}
_HISTOGRAMS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    STAGE: ("Seconds per stage of completed jobs.", ("model", "stage")),
    WAITED: ("Seconds from submission to the first start.", ("model",)),
}


#: A counter: its name, and the values of its labels joined by a comma.
Key = tuple[str, str]


async def count(db: AsyncConnection, counted: Mapping[Key, float]) -> None:
    """Add to counters, within the caller's transaction. In one statement and one order, so that two never deadlock."""
    rows = [{"name": name, "labels": labels, "value": counted[name, labels]} for name, labels in sorted(counted)]
    added = insert(counters).values(rows)
    value = counters.c.value + added.excluded.value
    await db.execute(added.on_conflict_do_update(index_elements=["name", "labels"], set_={"value": value}))


async def count_retry(db: AsyncConnection, job: Job, code: FailureCode) -> None:
    """Account for an attempt that failed and is followed by another."""
    await count(db, {_key(RETRIES, job.model, code): 1})


async def count_end(db: AsyncConnection, job: Job) -> None:
    """Account for a job that has just ended."""
    model = job.model
    counted: dict[Key, float] = {_key(ENDED, model, job.status, job.error_code or ""): 1}
    if busy := job.timings.get("run"):
        counted[_key(GPU_BUSY, model)] = busy
    if job.started_at is not None:
        counted |= _observed(WAITED, (model,), (job.started_at - job.created_at).total_seconds())
    if job.status is Status.COMPLETED:
        for stage, seconds in job.timings.items():
            counted |= _observed(STAGE, (model, stage), seconds)
    await count(db, counted)


def _key(name: str, *labels: str) -> Key:
    return name, ",".join(labels)


def _observed(name: str, labels: Sequence[str], value: float) -> dict[Key, float]:
    bucket = next((str(edge) for edge in BUCKETS if value <= edge), "+Inf")
    return {_key(f"{name}_bucket", *labels, bucket): 1, _key(f"{name}_sum", *labels): value}


async def collect(db: AsyncConnection, depths: Mapping[str, Mapping[str, int]]) -> Iterable[Metric]:
    """Everything ``/metrics`` shows. ``depths`` is the number of jobs by model and status."""
    rows = (await db.execute(select(counters.c.name, counters.c.labels, counters.c.value))).all()
    values = {(name, tuple(labels.split(","))): value for name, labels, value in rows}
    gauge = GaugeMetricFamily(
        "video_queue_depth", "Jobs that wait or run, by model; awaiting: for another job.", labels=("model", "status")
    )
    for model in MODELS:
        for status in (AWAITING, Status.QUEUED, Status.PROCESSING):
            gauge.add_metric((model, status), depths.get(model, {}).get(status, 0))
    families: list[Metric] = [gauge]
    for name, (text, labels) in _COUNTERS.items():
        counter = CounterMetricFamily(name, text, labels=labels)
        for (row_name, row_labels), value in values.items():
            if row_name == name:
                counter.add_metric(row_labels, value)
        families.append(counter)
    for name, (text, labels) in _HISTOGRAMS.items():
        histogram = HistogramMetricFamily(name, text, labels=labels)
        for (row_name, row_labels), total in values.items():
            if row_name == f"{name}_sum":
                histogram.add_metric(row_labels, _cumulative(values, name, row_labels), total)
        families.append(histogram)
    return families


def _cumulative(
    values: Mapping[tuple[str, tuple[str, ...]], float], name: str, labels: tuple[str, ...]
) -> list[tuple[str, float]]:
    buckets, total = [], 0.0
    for edge in (*map(str, BUCKETS), "+Inf"):
        total += values.get((f"{name}_bucket", (*labels, edge)), 0.0)
        buckets.append((edge, total))
    return buckets
