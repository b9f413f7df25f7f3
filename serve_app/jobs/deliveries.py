"""Webhooks: rows written with a job's events (``owed.py``), sent here, off the job's path.

Signed as `Standard Webhooks <https://www.standardwebhooks.com>`_ say. What a job's own ``webhook_url`` is told has the
fields that workers of the original service sent, so existing receivers keep working; endpoints are told what
``webhook_event.py`` says.
"""

import asyncio
import json
import random
import string
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog
from sqlalchemy import RowMapping, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine
from standardwebhooks import Webhook

from serve_app.jobs.database import in_seconds
from serve_app.jobs.delivery_log import Attempt, note_attempt
from serve_app.jobs.delivery_queue import CLAIM, COME_DUE, DUE_BATCH, HOST_SHARE, USER_SHARE
from serve_app.jobs.endpoints import disable_gone, is_disabled
from serve_app.jobs.job import Job, Status
from serve_app.jobs.signing import SigningSecrets
from serve_app.jobs.tables import deliveries, jobs, webhook_endpoints
from serve_app.jobs.webhook_event import EndpointFacts, EndpointTested, JobEvent, job_event
from serve_app.outbound.base import Outbound, OutboundError, OutboundUnavailable, PostReply

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
#: A receiver that asks for a longer pause than this is tried again all the same.
LONGEST_PAUSE_S = 24 * 3600


@dataclass(frozen=True)
class _Due:
    """A delivery that this process has taken, and what it takes to send it."""

    id: str
    url: str
    owner: str
    key_id: str
    event: str
    attempts: int
    #: Of those, how many the schedule does not count.
    attempts_before: int
    #: None of a test.
    job: Job | None
    endpoint_id: str | None
    #: Of the endpoint's secrets that are good now, the newest first.
    generations: Sequence[int]


class Deliveries:
    """Sends what is due. ``video_url`` makes the link of a completed job."""

    def __init__(
        self,
        engine: AsyncEngine,
        outbound: Outbound,
        secrets: SigningSecrets,
        video_url: Callable[[Job], Awaitable[str | None]],
    ) -> None:
        self._engine = engine
        self._outbound = outbound
        self._secrets = secrets
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
            return [_due(row) for row in (await db.execute(_TAKEN.where(deliveries.c.id.in_(ids)))).mappings()]

    async def _come_due(self) -> None:
        while True:
            async with self._engine.begin() as db:
                if (await db.execute(COME_DUE, {"batch": DUE_BATCH})).rowcount < DUE_BATCH:
                    return

    async def send(self, due: _Due) -> None:
        """One attempt: 2xx is success, 410 the end, anything else is tried again later."""
        about = {"delivery": due.id, "event_type": due.event, "endpoint": due.endpoint_id}
        if due.job is not None:
            about |= {"job_id": due.job.id, "request_id": due.job.request_id}
        reply, error = None, None
        begun_at, begun = datetime.now(UTC), time.monotonic()
        try:
            reply = await self._post(due)
            if not 200 <= reply.status < 300:
                error = f"HTTP {reply.status}: {reply.text[:500]}"
        except OutboundError as failure:
            error = failure.message
        except (OutboundUnavailable, TimeoutError) as failure:
            log.warning("webhook_postponed", error=str(failure), **about)
            again = {"state": "waiting", "next_attempt_at": in_seconds(OUR_FAULT_S), "attempts": due.attempts - 1}
            async with self._engine.begin() as db:
                await db.execute(_mine(due).values(again))
            return
        except Exception as failure:
            # E.g. no link can be made of the video. An attempt like any other, or it would never end.
            log.exception("webhook_crashed", **about)
            error = type(failure).__name__
        attempt = Attempt(
            n=due.attempts,
            at=begun_at,
            status=None if reply is None else reply.status,
            # Without NUL, which PostgreSQL does not store.
            error=None if error is None else error.replace("\0", ""),
            answer="" if reply is None else reply.text.replace("\0", ""),
            took_ms=round((time.monotonic() - begun) * 1000),
        )
        wait_s = None if attempt.error is None or attempt.status == GONE else _wait_s(due, reply)
        await self._note(due, attempt, wait_s)
        log.info("webhook", attempt=due.attempts, status=attempt.status, error=attempt.error, **about)
        if attempt.error is not None and wait_s is None:
            log.warning("webhook_given_up", status=attempt.status, **about)

    async def _note(self, due: _Due, attempt: Attempt, wait_s: float | None) -> None:
        values = {
            "state": "waiting",
            "last_status": attempt.status,
            "last_error": attempt.error,
            "delivered_at": func.now() if attempt.error is None else None,
            "next_attempt_at": None if wait_s is None else in_seconds(wait_s),
        }
        async with self._engine.begin() as db:
            # The endpoint's lock before the delivery's, as everywhere.
            if due.endpoint_id is not None and attempt.error is not None:
                if attempt.status == GONE and await disable_gone(db, due.endpoint_id, due.url):
                    log.warning("webhook_endpoint_disabled", endpoint=due.endpoint_id)
                if await is_disabled(db, due.endpoint_id):
                    values["next_attempt_at"] = None
            await db.execute(_mine(due).values(values))
            await note_attempt(db, due.id, attempt)

    async def _post(self, due: _Due) -> PostReply:
        body = await self._body(due)
        now = datetime.now(UTC)
        signatures = [Webhook(secret).sign(due.id, now, body) for secret in self._secrets_of(due)]
        headers = {
            "content-type": "application/json",
            "user-agent": "video-api",
            "webhook-id": due.id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(signatures),
        }
        if due.job is not None:
            headers["x-request-id"] = due.job.request_id
        async with asyncio.timeout(OUT_S):
            return await self._outbound.post(due.url, body, headers, owner=due.owner)

    def _secrets_of(self, due: _Due) -> Sequence[str]:
        if due.endpoint_id is None:
            return [self._secrets.of_key(due.key_id)]
        return [self._secrets.of_endpoint(due.endpoint_id, generation) for generation in due.generations]

    async def _body(self, due: _Due) -> str:
        if due.job is None:
            facts = EndpointFacts(endpoint_id=due.endpoint_id or "")
            return EndpointTested(timestamp=datetime.now(UTC), data=facts).model_dump_json()
        if due.endpoint_id is None:
            return json.dumps(await self._plain(due.job), separators=(",", ":"))
        event = JobEvent(due.event)
        url = await self._video_url(due.job) if event is JobEvent.COMPLETED else None
        return job_event(event, due.job, url).model_dump_json(exclude_none=True)

    async def _plain(self, job: Job) -> Mapping[str, Any]:
        body = {"job_id": job.id, "model": job.model, "status": job.status}
        if job.status is Status.COMPLETED:
            return body | {"video_url": await self._video_url(job)}
        return body | {"error": job.error_message, "error_code": job.error_code}


def _mine(due: _Due) -> Any:
    """Not if it has been claimed again since: then that sender has the last word."""
    return update(deliveries).where(deliveries.c.id == due.id, deliveries.c.attempts == due.attempts)


def _wait_s(due: _Due, reply: PostReply | None) -> float | None:
    """Seconds until the next attempt, by the schedule or by the receiver's own word; None if there is none."""
    made = due.attempts - due.attempts_before
    if made > len(RETRY_SCHEDULE_S):
        return None
    wait_s = RETRY_SCHEDULE_S[made - 1] * random.uniform(1, 1.2)  # noqa: S311 - spreads load
    asked_s = 0.0 if reply is None else reply.retry_after_s or 0.0
    return max(wait_s, min(asked_s, LONGEST_PAUSE_S))


#: What is sent; columns of ``jobs`` under their own names.
_TAKEN = (
    select(
        *(
            deliveries.c[name].label(f"delivery_{name}")
            for name in ("id", "url", "owner", "key_id", "event", "attempts", "attempts_before", "endpoint_id")
        ),
        webhook_endpoints.c.generation.label("endpoint_generation"),
        (webhook_endpoints.c.previous_until > func.now()).label("endpoint_rotating"),
        jobs,
    )
    .select_from(deliveries)
    .outerjoin(jobs)
    .outerjoin(webhook_endpoints)
)


def _due(row: RowMapping) -> _Due:
    newest = row["endpoint_generation"]
    both = (newest, newest - 1) if row["endpoint_rotating"] else (newest,)
    return _Due(
        id=row["delivery_id"],
        url=row["delivery_url"],
        owner=row["delivery_owner"],
        key_id=row["delivery_key_id"],
        event=row["delivery_event"],
        attempts=row["delivery_attempts"],
        attempts_before=row["delivery_attempts_before"],
        job=None if row["id"] is None else Job.from_row(row),
        endpoint_id=row["delivery_endpoint_id"],
        generations=() if newest is None else both,
    )
