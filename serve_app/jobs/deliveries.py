"""Webhooks: rows written when a job ends, sent here, off the job's path.

Signed as `Standard Webhooks <https://www.standardwebhooks.com>`_ say; the body has the fields that workers of the
original service sent, so existing receivers keep working.
"""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog
from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncEngine
from standardwebhooks import Webhook

from serve_app.intake.errors import IntakeError
from serve_app.intake.fetch import SafeClient
from serve_app.jobs.database import in_seconds
from serve_app.jobs.job import Job, Status
from serve_app.jobs.tables import deliveries, jobs

log = structlog.get_logger()

#: Seconds to wait after the n-th failed attempt: the schedule of Standard Webhooks, about three days in all.
RETRY_SCHEDULE_S = (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)
#: A delivery that is being sent is invisible to other senders for this long.
CLAIM_S = 120
#: A receiver gets so many seconds to answer: less than ``CLAIM_S``, so that nobody else sends the same meanwhile.
SEND_TIMEOUT_S = 30
GONE = 410


@dataclass(frozen=True)
class _Due:
    id: str
    url: str
    attempts: int
    job: Job


class Deliveries:
    """Sends what is due. ``video_url`` makes the link of a completed job."""

    def __init__(
        self,
        engine: AsyncEngine,
        client: SafeClient,
        secret: str,
        video_url: Callable[[Job], Awaitable[str | None]],
    ) -> None:
        self._engine = engine
        self._client = client
        self._webhook = Webhook(secret)
        self._video_url = video_url

    async def claim(self, limit: int = 10) -> Sequence[_Due]:
        """Take deliveries that are due; they come back by themselves if this process dies."""
        due = (
            select(deliveries.c.id)
            .where(deliveries.c.next_attempt_at <= func.now())
            .order_by(deliveries.c.next_attempt_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        async with self._engine.begin() as db:
            ids = list((await db.execute(due)).scalars())
            taken = update(deliveries).where(deliveries.c.id.in_(ids))
            await db.execute(taken.values(next_attempt_at=in_seconds(CLAIM_S), attempts=deliveries.c.attempts + 1))
            columns = (deliveries.c.id.label("delivery_id"), deliveries.c.url, deliveries.c.attempts, jobs)
            rows = await db.execute(select(*columns).join(jobs).where(deliveries.c.id.in_(ids)))
            # `attempts` and `url` are no columns of jobs, so the labels do not collide.
            return [_Due(r["delivery_id"], r["url"], r["attempts"], Job.from_row(r)) for r in rows.mappings()]

    async def send(self, due: _Due) -> None:
        """One attempt: 2xx is success, 410 the end, anything else is tried again later."""
        status, error = None, None
        try:
            status, error = await self._post(due)
        except IntakeError as failure:
            error = str(failure)
        except TimeoutError:
            error = f"no answer within {SEND_TIMEOUT_S} s"
        except Exception as failure:
            # E.g. no link can be made of the video. An attempt like any other, or it would never end.
            log.exception("webhook_crashed", job_id=due.job.id, request_id=due.job.request_id)
            error = type(failure).__name__
        values: dict[str, Any] = {"last_status": status, "last_error": error, "next_attempt_at": None}
        if error is None:
            values["delivered_at"] = func.now()
        elif status != GONE and due.attempts <= len(RETRY_SCHEDULE_S):
            wait = RETRY_SCHEDULE_S[due.attempts - 1] * random.uniform(1, 1.2)  # noqa: S311 - spreads load
            values["next_attempt_at"] = in_seconds(wait)
        async with self._engine.begin() as db:
            await db.execute(update(deliveries).where(deliveries.c.id == due.id).values(values))
        log.info(
            "webhook",
            job_id=due.job.id,
            request_id=due.job.request_id,
            delivery=due.id,
            attempt=due.attempts,
            status=status,
            error=error,
        )

    async def _post(self, due: _Due) -> tuple[int, str | None]:
        """The receiver's status and, unless that is success, what it said."""
        body = json.dumps(await self._body(due.job), separators=(",", ":"))
        now = datetime.now(UTC)
        headers = {
            "content-type": "application/json",
            "user-agent": "video-api",
            "webhook-id": due.id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._webhook.sign(due.id, now, body),
            "x-request-id": due.job.request_id,
        }
        async with asyncio.timeout(SEND_TIMEOUT_S):
            reply = await self._client.post(due.url, body.encode(), headers)
        if 200 <= reply.status < 300:
            return reply.status, None
        # Without NUL, which PostgreSQL does not store.
        return reply.status, f"HTTP {reply.status}: {reply.body[:500].decode(errors='replace')}".replace("\0", "")

    async def _body(self, job: Job) -> dict[str, Any]:
        body = {"job_id": job.id, "model": job.model, "status": job.status}
        if job.status is Status.COMPLETED:
            return body | {"video_url": await self._video_url(job)}
        return body | {"error": job.error_message, "error_code": job.error_code}
