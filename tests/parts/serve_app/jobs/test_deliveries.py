"""Webhooks against a real receiver on 127.0.0.1."""

import asyncio
import json
from collections.abc import AsyncIterator
from ipaddress import ip_network
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine
from standardwebhooks import Webhook, WebhookVerificationError

from serve_app.jobs import deliveries as deliveries_module
from serve_app.jobs.deliveries import RETRY_SCHEDULE_S, Deliveries
from serve_app.jobs.job import Job
from serve_app.jobs.signing import SigningSecrets
from serve_app.jobs.store import JobStore
from serve_app.outbound.client import SafeClient
from serve_app.outbound.limits import Limits
from serve_app.settings import Settings
from tests.fakes.http_source import HttpSource, reply, stalled
from tests.parts.serve_app.jobs.samples import come_due, completed, deliver, failure, fetch, running

LOOPBACK = (ip_network("127.0.0.0/8"),)
SETTINGS = Settings(secret_key=SecretStr("the root of all secrets of the service"))
SECRETS = SigningSecrets(SETTINGS.signing_secret, SETTINGS.signing_root)


async def video_url(job: Job) -> str:
    return f"https://v.example/{job.id}.mp4"


@pytest.fixture
async def receiver() -> AsyncIterator[HttpSource]:
    async with HttpSource({"/hook": reply(200)}) as source:
        yield source


@pytest.fixture
async def deliveries(engine: AsyncEngine) -> AsyncIterator[Deliveries]:
    async with SafeClient(LOOPBACK) as client:
        yield Deliveries(engine, client, SECRETS, video_url)


async def state(engine: AsyncEngine) -> dict[str, Any]:
    (row,) = await fetch(
        engine,
        """
        SELECT attempts, last_status, last_error, delivered_at IS NOT NULL AS delivered,
               extract(epoch FROM next_attempt_at - now())::float8 AS next_in FROM deliveries
        """,
    )
    return dict(row)


async def test_a_finished_job_is_told_signed(
    deliveries: Deliveries, store: JobStore, receiver: HttpSource, engine: AsyncEngine
) -> None:
    job_id = await completed(store, webhook_url=receiver.url("/hook"), request_id="req-1")
    assert await deliver(deliveries) == 1
    (seen,) = receiver.seen
    assert (seen.method, seen.headers["content-type"]) == ("POST", "application/json")
    told = Webhook(SETTINGS.signing_secret).verify(seen.body.decode(), seen.headers)
    url = f"https://v.example/{job_id}.mp4"
    assert told == {"job_id": job_id, "model": "ltx2", "status": "completed", "video_url": url}
    assert seen.headers["x-request-id"] == "req-1"
    found = await state(engine)
    assert (found["delivered"], found["last_status"], found["next_in"], found["attempts"]) == (True, 200, None, 1)
    assert await deliver(deliveries) == 0


async def test_a_failed_job_is_told_with_its_reason(
    deliveries: Deliveries, store: JobStore, receiver: HttpSource
) -> None:
    lease = await running(store, webhook_url=receiver.url("/hook"))
    await store.fail(failure(lease, "no_face_found", transient=False))
    await deliver(deliveries)
    told = json.loads(receiver.seen[0].body)
    assert (told["status"], told["error"]) == ("failed", "because of no_face_found")
    assert "video_url" not in told


async def test_a_receiver_never_learns_what_workers_prove_themselves_with(
    deliveries: Deliveries, store: JobStore, receiver: HttpSource
) -> None:
    await completed(store, webhook_url=receiver.url("/hook"))
    await deliver(deliveries)
    (seen,) = receiver.seen
    secret = SETTINGS.worker_secret
    said = repr((seen.target, seen.headers, seen.body))
    assert secret not in said
    assert SETTINGS.signing_secret not in said
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_" + "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0").verify(seen.body.decode(), seen.headers)


@pytest.mark.parametrize("status", [301, 302, 307, 400, 404, 500, 503])
async def test_what_is_no_success_is_tried_again_under_the_same_id(
    deliveries: Deliveries, store: JobStore, receiver: HttpSource, engine: AsyncEngine, status: int
) -> None:
    receiver.routes["/hook"] = reply(status, b"not now", Location="/elsewhere")
    await completed(store, webhook_url=receiver.url("/hook"))
    await deliver(deliveries)
    found = await state(engine)
    assert (found["delivered"], found["last_status"]) == (False, status)
    assert "not now" in found["last_error"]
    assert RETRY_SCHEDULE_S[0] - 2 < found["next_in"] <= RETRY_SCHEDULE_S[0] * 1.2
    assert await deliver(deliveries) == 0
    receiver.routes["/hook"] = reply(204)
    await come_due(engine)
    assert await deliver(deliveries) == 1
    assert (await state(engine))["delivered"]
    first, second = receiver.seen
    assert {seen.target for seen in receiver.seen} == {"/hook"}, "a redirect is not followed"
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    Webhook(SETTINGS.signing_secret).verify(second.body.decode(), second.headers)


async def test_waits_grow_and_end(
    deliveries: Deliveries, store: JobStore, receiver: HttpSource, engine: AsyncEngine
) -> None:
    receiver.routes["/hook"] = reply(500)
    await completed(store, webhook_url=receiver.url("/hook"))
    for wait in RETRY_SCHEDULE_S:
        await come_due(engine)
        assert await deliver(deliveries) == 1
        assert wait - 2 < (await state(engine))["next_in"] <= wait * 1.2
    await come_due(engine)
    assert await deliver(deliveries) == 1
    found = await state(engine)
    assert (found["next_in"], found["attempts"], found["delivered"]) == (None, len(RETRY_SCHEDULE_S) + 1, False)


async def test_gone_ends_it_at_once(
    deliveries: Deliveries, store: JobStore, receiver: HttpSource, engine: AsyncEngine
) -> None:
    receiver.routes["/hook"] = reply(410)
    await completed(store, webhook_url=receiver.url("/hook"))
    await deliver(deliveries)
    found = await state(engine)
    assert (found["next_in"], found["last_status"], found["delivered"]) == (None, 410, False)


async def test_a_receiver_that_is_down_is_tried_again(
    deliveries: Deliveries, store: JobStore, engine: AsyncEngine
) -> None:
    await completed(store, webhook_url="http://127.0.0.1:1/hook")
    await deliver(deliveries)
    found = await state(engine)
    assert (found["last_status"], found["delivered"]) == (None, False)
    assert found["next_in"] > 0


async def test_a_private_address_is_not_called(store: JobStore, receiver: HttpSource, engine: AsyncEngine) -> None:
    await completed(store, webhook_url=receiver.url("/hook"))
    async with SafeClient() as client:
        await deliver(Deliveries(engine, client, SECRETS, video_url))
    assert receiver.seen == []
    assert "not a public address" in (await state(engine))["last_error"]


async def test_a_receiver_that_never_answers_holds_nobody_up(
    deliveries: Deliveries,
    store: JobStore,
    receiver: HttpSource,
    engine: AsyncEngine,
) -> None:
    """Longer than the claim, a second sender would send the same at the same time."""
    assert Limits().post_s < deliveries_module.OUT_S < deliveries_module.CLAIM_S
    receiver.routes["/hook"] = stalled()
    await completed(store, webhook_url=receiver.url("/hook"))
    async with SafeClient(LOOPBACK, Limits(post_s=0.05)) as client:
        await deliver(Deliveries(engine, client, SECRETS, video_url))
    found = await state(engine)
    assert "0.05 s" in found["last_error"]
    assert 0 < found["next_in"] <= RETRY_SCHEDULE_S[0] * 1.2


async def test_a_receiver_that_says_yes_and_drips_is_told_once(
    deliveries: Deliveries, store: JobStore, receiver: HttpSource, engine: AsyncEngine
) -> None:
    """It was told ten times, and held one of the slots for half a minute each time."""
    receiver.routes["/hook"] = stalled(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nx")
    await completed(store, webhook_url=receiver.url("/hook"))
    async with asyncio.timeout(10):
        await deliver(deliveries)
    found = await state(engine)
    assert (found["delivered"], found["last_status"], found["attempts"]) == (True, 200, 1)


async def test_an_answer_with_a_nul_is_recorded(
    deliveries: Deliveries, store: JobStore, receiver: HttpSource, engine: AsyncEngine
) -> None:
    """PostgreSQL refuses NUL; unrecorded, the delivery would be sent every two minutes for ever."""
    receiver.routes["/hook"] = reply(500, b"bad\0byte\xff")
    await completed(store, webhook_url=receiver.url("/hook"))
    await deliver(deliveries)
    assert (await state(engine))["last_error"].startswith("HTTP 500: badbyte")


async def test_what_is_being_sent_is_not_sent_twice(
    deliveries: Deliveries, store: JobStore, receiver: HttpSource, engine: AsyncEngine
) -> None:
    await completed(store, webhook_url=receiver.url("/hook"))
    (due,) = await deliveries.claim()
    assert await deliveries.claim() == []
    # The sender died: it comes back by itself.
    await come_due(engine)
    (again,) = await deliveries.claim()
    assert (again.id, again.attempts) == (due.id, 2)


async def test_a_cancelled_job_is_told_to_nobody(deliveries: Deliveries, store: JobStore) -> None:
    lease = await running(store, webhook_url="https://c.example/hook")
    await store.cancel(lease.job_id)
    await store.fail(failure(lease))
    assert await deliveries.claim() == []


async def test_the_operator_is_told_besides_the_client(
    deliveries: Deliveries, receiver: HttpSource, engine: AsyncEngine
) -> None:
    receiver.routes["/operator"] = reply(200)
    store = JobStore(engine, lease_s=3600, webhook_url=receiver.url("/operator"))
    await completed(store, webhook_url=receiver.url("/hook"))
    await completed(store, webhook_url=receiver.url("/operator"))
    await deliver(deliveries)
    assert sorted(seen.target for seen in receiver.seen) == ["/hook", "/operator", "/operator"]
