"""Who is told of an event of a job: its own ``webhook_url``, the operator's, and the endpoints of its key."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import any_, insert, literal, select
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.jobs.delivery_queue import new_row
from serve_app.jobs.job import Job
from serve_app.jobs.tables import deliveries, webhook_endpoints
from serve_app.jobs.webhook_event import JobEvent

#: What URLs are told that are no endpoints: as in the original service.
_PLAIN = frozenset({JobEvent.COMPLETED, JobEvent.FAILED})


async def owe(db: AsyncConnection, job: Job, event: JobEvent, operator_url: str = "") -> bool:
    """Write the deliveries of an event, within the transaction that brings it about. Whether there are any."""
    rows: list[Mapping[str, Any]] = []
    if event in _PLAIN:
        if job.webhook_url:
            rows.append(_row(job, event, job.webhook_url, job.key_id))
        # Once, where the operator has asked for the job himself.
        if operator_url and (job.webhook_url, job.key_id) != (operator_url, ""):
            rows.append(_row(job, event, operator_url, ""))
    # The lock keeps an endpoint from being deleted, disabled or moved before its rows are there: all of them are seen.
    listening = (
        select(webhook_endpoints.c.id, webhook_endpoints.c.url)
        .where(
            webhook_endpoints.c.key_id == job.key_id,
            webhook_endpoints.c.disabled_at.is_(None),
            literal(event.value) == any_(webhook_endpoints.c.events),
        )
        .with_for_update(read=True)
    )
    for endpoint_id, url in await db.execute(listening):
        rows.append(_row(job, event, url, job.key_id, endpoint_id))
    if rows:
        await db.execute(insert(deliveries), rows)
    return bool(rows)


def _row(job: Job, event: JobEvent, url: str, key_id: str, endpoint_id: str | None = None) -> Mapping[str, Any]:
    return new_row(url, owner=job.owner, key_id=key_id, event=event.value, endpoint_id=endpoint_id, job_id=job.id)
