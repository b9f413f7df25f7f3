"""Webhooks: rows written when a job ends, sent here, off the job's path.

Signed as `Standard Webhooks <https://www.standardwebhooks.com>`_ say; the body has the fields that workers of the
original service sent, so existing receivers keep working.
"""

import asyncio
import json
import random
import string
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog
from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine
from standardwebhooks import Webhook

from serve_app.jobs.database import in_seconds
from serve_app.jobs.delivery_queue import CLAIM, COME_DUE, DUE_BATCH, HOST_SHARE, USER_SHARE
from serve_app.jobs.job import Job, Status
from serve_app.jobs.tables import deliveries, jobs
from serve_app.outbound.base import Outbound, OutboundError, OutboundUnavailable

log = structlog.get_logger()

#: Seconds to wait after the n-th failed attempt: the schedule of Standard Webhooks, about three days in all.
RETRY_SCHEDULE_S = (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)
#: A delivery that is being sent is invisible to other senders for this long.
CLAIM_S = 120
#: Seconds in which the way out has to be done with it, our own queues included: less than ``CLAIM_S``, so that nobody
#: else sends the same meanwhile. The receiver's own time is limited there.
OUT_S = 100
#: When it's our fault that it was not sent, it is again after so many seconds, and that was no attempt.
OUR_FAULT_S = 5
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
        outbound: Outbound,
        secret: str,
        video_url: Callable[[Job], Awaitable[str | None]],
    ) -> None:
        self._engine = engine
        self._outbound = outbound
        self._webhook = Webhook(secret)
        self._video_url = video_url

    async def claim(self, limit: int = 10, user_share: int = USER_SHARE, *, free: int = 10**6) -> Sequence[_Due]:
        """Take at most ``limit`` that are due, by turns, so that no user has more than ``user_share`` in flight. Of
        ``free`` slots a key leaves some to the others.

        They come back by themselves if this process dies.
        """
        await self._come_due()
        start = "".join(random.choices(string.ascii_lowercase + string.digits, k=2))  # noqa: S311 - spreads turns
        shares = {"user_share": user_share, "host_share": HOST_SHARE}
        values = {"room": limit, "free": free, "start": start, **shares}
        async with self._engine.begin() as db:
            # One at a time, so that two dispatchers cannot give somebody two shares together.
            await db.execute(text("SELECT pg_advisory_xact_lock(hashtext('claim deliveries'))"))
            ids = list((await db.execute(CLAIM, values)).scalars())
            if not ids:
                return []
            taken = update(deliveries).where(deliveries.c.id.in_(ids))
            until = in_seconds(CLAIM_S)
            attempts = deliveries.c.attempts + 1
            await db.execute(taken.values(state="sending", next_attempt_at=until, attempts=attempts))
            columns = (deliveries.c.id.label("delivery_id"), deliveries.c.url, deliveries.c.attempts, jobs)
            rows = await db.execute(select(*columns).join(jobs).where(deliveries.c.id.in_(ids)))
            # `attempts` and `url` are no columns of jobs, so the labels do not collide.
            return [_Due(row["delivery_id"], row["url"], row["attempts"], Job.from_row(row)) for row in rows.mappings()]

    async def _come_due(self) -> None:
        while True:
            async with self._engine.begin() as db:
                if (await db.execute(COME_DUE, {"batch": DUE_BATCH})).rowcount < DUE_BATCH:
                    return

    async def send(self, due: _Due) -> None:
        """One attempt: 2xx is success, 410 the end, anything else is tried again later."""
        status, error = None, None
        try:
            status, error = await self._post(due)
        except OutboundError as failure:
            error = failure.message
        except (OutboundUnavailable, TimeoutError) as failure:
            log.warning("webhook_postponed", job_id=due.job.id, delivery=due.id, error=str(failure))
            await self._note(due, state="waiting", next_attempt_at=in_seconds(OUR_FAULT_S), attempts=due.attempts - 1)
            return
        except Exception as failure:
            # E.g. no link can be made of the video. An attempt like any other, or it would never end.
            log.exception("webhook_crashed", job_id=due.job.id, request_id=due.job.request_id)
            error = type(failure).__name__
        values: dict[str, Any] = {
            "state": "waiting",
            "last_status": status,
            "last_error": error,
            "next_attempt_at": None,
        }
        if error is None:
            values["delivered_at"] = func.now()
        elif status != GONE and due.attempts <= len(RETRY_SCHEDULE_S):
            wait = RETRY_SCHEDULE_S[due.attempts - 1] * random.uniform(1, 1.2)  # noqa: S311 - spreads load
            values["next_attempt_at"] = in_seconds(wait)
        await self._note(due, **values)
        log.info(
            "webhook",
            job_id=due.job.id,
            request_id=due.job.request_id,
            delivery=due.id,
            attempt=due.attempts,
            status=status,
            error=error,
        )

    async def _note(self, due: _Due, **values: Any) -> None:
        # Not if it has been claimed again since: then that sender has the last word.
        mine = (deliveries.c.id == due.id) & (deliveries.c.attempts == due.attempts)
        async with self._engine.begin() as db:
            await db.execute(update(deliveries).where(mine).values(values))

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
        async with asyncio.timeout(OUT_S):
            reply = await self._outbound.post(due.url, body, headers, owner=due.job.owner)
        if 200 <= reply.status < 300:
            return reply.status, None
        # Without NUL, which PostgreSQL does not store.
        return reply.status, f"HTTP {reply.status}: {reply.text[:500]}".replace("\0", "")

    async def _body(self, job: Job) -> dict[str, Any]:
        body = {"job_id": job.id, "model": job.model, "status": job.status}
        if job.status is Status.COMPLETED:
            return body | {"video_url": await self._video_url(job)}
        return body | {"error": job.error_message, "error_code": job.error_code}
