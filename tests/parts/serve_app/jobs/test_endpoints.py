"""Webhook endpoints against real receivers on 127.0.0.1: what they are told, signed how, and what their answers do."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from ipaddress import ip_network
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine
from standardwebhooks import Webhook, WebhookVerificationError

from deployments.contract import Started
from serve_app.jobs.deliveries import RETRY_SCHEDULE_S, Deliveries
from serve_app.jobs.delivery_log import KEPT, Attempt, Delivery, DeliveryLog, EndpointDisabled, note_attempt
from serve_app.jobs.endpoints import MOST_OF_A_KEY, Endpoint, Endpoints
from serve_app.jobs.job import Job
from serve_app.jobs.owed import owe
from serve_app.jobs.retention import Retention, RetentionPolicy
from serve_app.jobs.signing import SigningSecrets
from serve_app.jobs.store import JobStore
from serve_app.jobs.webhook_event import ENDS, JobEvent
from serve_app.outbound.client import SafeClient
from serve_app.storage.local import LocalStorage
from tests.fakes.http_source import HttpSource, Seen, reply
from tests.parts.serve_app.jobs.samples import (
    come_due,
    completed,
    deliver,
    eventually,
    execute,
    failure,
    fetch,
    running,
    skip_back_off,
)

OPERATOR = "whsec_" + "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0"
SECRETS = SigningSecrets(OPERATOR, b"r" * 32)
ALL = tuple(JobEvent)


async def video_url(job: Job) -> str:
    return f"https://v.example/{job.id}.mp4"


@pytest.fixture
async def receiver() -> AsyncIterator[HttpSource]:
    async with HttpSource({"/hook": reply(200, b"thanks"), "/other": reply(200)}) as source:
        yield source


@pytest.fixture
async def deliveries(engine: AsyncEngine) -> AsyncIterator[Deliveries]:
    async with SafeClient((ip_network("127.0.0.0/8"),)) as client:
        yield Deliveries(engine, client, SECRETS, video_url)


@pytest.fixture
def endpoints(engine: AsyncEngine) -> Endpoints:
    return Endpoints(engine)


@pytest.fixture
def log(engine: AsyncEngine) -> DeliveryLog:
    return DeliveryLog(engine)


async def made(endpoints: Endpoints, url: str, key_id: str = "", events: Sequence[str] = ENDS) -> Endpoint:
    endpoint = await endpoints.create(key_id, url, events)
    assert endpoint is not None
    return endpoint


def told(seen: Seen, secret: str) -> Any:
    """The body, whose signature holds."""
    return Webhook(secret).verify(seen.body.decode(), seen.headers)


def is_signed(seen: Seen, secret: str) -> bool:
    try:
        told(seen, secret)
    except WebhookVerificationError:
        return False
    return True


async def only(log: DeliveryLog) -> Delivery:
    (delivery,) = await log.list()
    return delivery


# -------------------------------------------------------------------- what is told


async def test_an_endpoint_is_told_what_it_asked_for(
    deliveries: Deliveries, endpoints: Endpoints, store: JobStore, receiver: HttpSource
) -> None:
    all_of_them = await made(endpoints, receiver.url("/hook"), events=ALL)
    await made(endpoints, receiver.url("/other"), events=[JobEvent.CANCELLED])
    job_id = await completed(store, "ann")
    lease = await running(store)
    await store.fail(failure(lease, "no_face_found", transient=False))
    cancelled = await running(store)
    await store.cancel(cancelled.job_id)
    await store.fail(failure(cancelled))
    while await deliver(deliveries):
        pass
    secret = SECRETS.of_endpoint(all_of_them.id, 1)
    bodies = [told(seen, secret) for seen in receiver.seen if seen.target == "/hook"]
    assert sorted(body["type"] for body in bodies) == [
        *("job.cancelled", "job.completed", "job.failed"),
        *["job.started"] * 3,
    ]
    (video,) = [body["data"] for body in bodies if body["type"] == "job.completed"]
    assert (video["job_id"], video["user_id"]) == (job_id, "ann")
    assert video["video_url"] == f"https://v.example/{job_id}.mp4"
    (fault,) = [body["data"] for body in bodies if body["type"] == "job.failed"]
    assert (fault["error_code"], fault["error"]) == ("no_face_found", "because of no_face_found")
    (other,) = [seen for seen in receiver.seen if seen.target == "/other"]
    assert json.loads(other.body)["data"]["job_id"] == cancelled.job_id


async def test_a_start_is_told_once(
    store: JobStore, endpoints: Endpoints, engine: AsyncEngine, log: DeliveryLog
) -> None:
    await made(endpoints, "https://hooks.example/", events=[JobEvent.STARTED])
    lease = await running(store)
    await store.start(Started(lease=lease))
    await store.fail(failure(lease))
    await skip_back_off(engine)
    (again,) = await store.claim_to_run("ltx2", 1)
    await store.start(Started(lease=again.lease))
    assert [delivery.event for delivery in await log.list()] == ["job.started"]


async def test_a_key_hears_of_its_own_jobs_alone(store: JobStore, endpoints: Endpoints, log: DeliveryLog) -> None:
    ours = await made(endpoints, "https://a.example/", "key_a")
    theirs = await made(endpoints, "https://b.example/", "key_b")
    job_id = await completed(store, key_id="key_a")
    assert [(found.job_id, found.endpoint_id) for found in await log.list()] == [(job_id, ours.id)]
    assert await log.list(of_key="key_b") == []
    assert [found.job_id for found in await log.list(of_key="key_a")] == [job_id]
    assert await endpoints.get(theirs.id, of_key="key_a") is None
    assert await endpoints.change(theirs.id, url="https://a.example/", of_key="key_a") is None
    assert await endpoints.rotate(theirs.id, 0, of_key="key_a") is None
    assert await log.test(theirs.id, of_key="key_a") is None
    assert not await endpoints.delete(theirs.id, of_key="key_a")
    assert await endpoints.get(theirs.id, of_key="key_b") == theirs


async def test_a_job_s_own_url_is_signed_with_its_key_s_secret(
    deliveries: Deliveries, engine: AsyncEngine, receiver: HttpSource, log: DeliveryLog
) -> None:
    """With one for all, whoever has a key could forge for every receiver."""
    store = JobStore(engine, lease_s=3600, webhook_url=receiver.url("/other"))
    job_id = await completed(store, key_id="key_a", webhook_url=receiver.url("/hook"))
    assert await deliver(deliveries) == 2
    by_target = {seen.target: seen for seen in receiver.seen}
    own = told(by_target["/hook"], SECRETS.of_key("key_a"))
    assert own == {
        "job_id": job_id,
        "model": "ltx2",
        "status": "completed",
        "video_url": f"https://v.example/{job_id}.mp4",
    }
    assert told(by_target["/other"], OPERATOR) == own
    assert not is_signed(by_target["/hook"], OPERATOR)
    # What the operator is told is not the key's to see.
    assert [found.url for found in await log.list(of_key="key_a")] == [receiver.url("/hook")]


async def test_the_operator_hears_of_a_job_that_names_his_url(
    deliveries: Deliveries, engine: AsyncEngine, receiver: HttpSource
) -> None:
    """Else a key could hide its jobs from him, since what it names is signed with its own secret."""
    store = JobStore(engine, lease_s=3600, webhook_url=receiver.url("/hook"))
    await completed(store, key_id="key_a", webhook_url=receiver.url("/hook"))
    await deliver(deliveries)
    assert sorted(is_signed(seen, OPERATOR) for seen in receiver.seen) == [False, True]


async def test_an_end_of_a_key_without_endpoints_costs_one_question(store: JobStore, engine: AsyncEngine) -> None:
    lease = await running(store)
    statements: list[str] = []

    def note(_: object, __: object, statement: str, *___: object) -> None:
        statements.append(statement)

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    await store.fail(failure(lease, "no_face_found", transient=False))
    event.remove(engine.sync_engine, "before_cursor_execute", note)
    assert len([statement for statement in statements if "webhook_endpoints" in statement]) == 1
    assert not [statement for statement in statements if "deliveries" in statement]


# -------------------------------------------------------------------- secrets


async def test_while_a_secret_is_rotated_both_are_good(
    deliveries: Deliveries, endpoints: Endpoints, log: DeliveryLog, receiver: HttpSource, engine: AsyncEngine
) -> None:
    endpoint = await made(endpoints, receiver.url("/hook"))
    old, new, newest = (SECRETS.of_endpoint(endpoint.id, generation) for generation in (1, 2, 3))
    rotated = await endpoints.rotate(endpoint.id, 3600)
    assert rotated is not None
    assert rotated.generation == 2
    await log.test(endpoint.id)
    await deliver(deliveries)
    seen = receiver.seen[-1]
    assert len(seen.headers["webhook-signature"].split(" ")) == 2
    assert told(seen, old) == told(seen, new)
    await execute(engine, "UPDATE webhook_endpoints SET previous_until = now() - interval '1 second'")
    await log.test(endpoint.id)
    await deliver(deliveries)
    seen = receiver.seen[-1]
    assert (is_signed(seen, old), is_signed(seen, new)) == (False, True)
    # Of the two before, only the last is good.
    await endpoints.rotate(endpoint.id, 3600)
    await log.test(endpoint.id)
    await deliver(deliveries)
    seen = receiver.seen[-1]
    assert [is_signed(seen, secret) for secret in (old, new, newest)] == [False, True, True]


async def test_a_secret_that_leaked_is_good_no_longer_at_once(
    deliveries: Deliveries, endpoints: Endpoints, log: DeliveryLog, receiver: HttpSource
) -> None:
    endpoint = await made(endpoints, receiver.url("/hook"))
    await endpoints.rotate(endpoint.id, 0)
    await log.test(endpoint.id)
    await deliver(deliveries)
    assert not is_signed(receiver.seen[-1], SECRETS.of_endpoint(endpoint.id, 1))
    assert is_signed(receiver.seen[-1], SECRETS.of_endpoint(endpoint.id, 2))


# -------------------------------------------------------------------- the log


async def test_every_attempt_is_kept_with_what_was_answered(
    deliveries: Deliveries,
    endpoints: Endpoints,
    log: DeliveryLog,
    store: JobStore,
    receiver: HttpSource,
    engine: AsyncEngine,
) -> None:
    receiver.routes["/hook"] = reply(500, b"no\0t now " + b"x" * 5000)
    await made(endpoints, receiver.url("/hook"))
    await completed(store)
    await deliver(deliveries)
    receiver.routes["/hook"] = reply(200, "schön".encode())
    await come_due(engine)
    await deliver(deliveries)
    delivery = await only(log)
    first, second = delivery.log
    assert (first.n, first.status, second.n, second.status, second.error) == (1, 500, 2, 200, None)
    assert first.answer.startswith("not now xxx")
    assert len(first.answer) < 2048
    assert first.error is not None
    assert first.error.startswith("HTTP 500: not now")
    assert second.answer == "schön"
    assert first.took_ms >= 0
    assert first.at < second.at
    assert delivery.delivered_at is not None


async def test_a_receiver_that_is_down_is_kept_too(
    deliveries: Deliveries, endpoints: Endpoints, log: DeliveryLog, store: JobStore
) -> None:
    await made(endpoints, "http://127.0.0.1:1/hook")
    await completed(store)
    await deliver(deliveries)
    (attempt,) = (await only(log)).log
    assert (attempt.status, attempt.answer) == (None, "")
    assert attempt.error


async def test_the_log_goes_with_its_job_and_with_its_endpoint(
    deliveries: Deliveries,
    endpoints: Endpoints,
    log: DeliveryLog,
    store: JobStore,
    receiver: HttpSource,
    engine: AsyncEngine,
) -> None:
    endpoint = await made(endpoints, receiver.url("/hook"))
    first, _ = await completed(store), await completed(store)
    await deliver(deliveries)
    await store.delete(first)
    (left,) = await log.list()
    assert left.job_id != first
    assert len(await fetch(engine, "SELECT 1 FROM delivery_attempts")) == 1
    assert await endpoints.delete(endpoint.id)
    assert await log.list() == []
    assert await fetch(engine, "SELECT 1 FROM delivery_attempts") == []


async def test_the_log_is_bounded(
    endpoints: Endpoints, log: DeliveryLog, store: JobStore, engine: AsyncEngine, tmp_path: Any
) -> None:
    endpoint = await made(endpoints, "https://hooks.example/")
    await completed(store)
    delivery = await only(log)
    for n in range(1, KEPT + 6):
        async with engine.begin() as db:
            at = delivery.created_at
            await note_attempt(db, delivery.id, Attempt(n=n, at=at, status=500, error="no", answer="", took_ms=1))
    assert [attempt.n for attempt in (await only(log)).log] == list(range(6, KEPT + 6))
    for _ in range(KEPT + 5):
        await log.test(endpoint.id)
    tests = [found for found in await log.list(limit=100) if found.job_id is None]
    assert len(tests) == KEPT
    # A week old, tests go by themselves; what is of a job stays with it.
    await execute(engine, "UPDATE deliveries SET created_at = now() - interval '8 days'")
    storage = LocalStorage(tmp_path, "http://127.0.0.1:1", b"k" * 32)
    await Retention(engine, storage, RetentionPolicy()).tidy()
    assert [found.id for found in await log.list()] == [delivery.id]


async def test_an_attempt_of_a_job_that_was_deleted_meanwhile_is_nobodys(
    deliveries: Deliveries, endpoints: Endpoints, log: DeliveryLog, store: JobStore, receiver: HttpSource
) -> None:
    await made(endpoints, receiver.url("/hook"))
    job_id = await completed(store)
    (due,) = await deliveries.claim()
    await store.delete(job_id)
    await deliveries.send(due)
    assert len(receiver.seen) == 1
    assert await log.list() == []


async def test_pages_follow_one_another(endpoints: Endpoints, log: DeliveryLog, store: JobStore) -> None:
    endpoint = await made(endpoints, "https://hooks.example/", events=ALL)
    jobs = [await completed(store) for _ in range(3)]
    whole = [found.id for found in await log.list()]
    assert whole == sorted(whole, reverse=True)
    pages = [await log.list(limit=4), await log.list(limit=4, after=whole[3])]
    assert [found.id for page in pages for found in page] == whole
    assert len(whole) == 6
    assert {found.job_id for found in await log.list(job_id=jobs[1])} == {jobs[1]}
    assert len(await log.list(endpoint_id=endpoint.id, job_id=jobs[1])) == 2
    assert await log.list(endpoint_id="whe_other") == []


# -------------------------------------------------------------------- again, and as a test


async def test_what_was_given_up_is_sent_again_by_the_whole_schedule(
    deliveries: Deliveries,
    endpoints: Endpoints,
    log: DeliveryLog,
    store: JobStore,
    receiver: HttpSource,
    engine: AsyncEngine,
) -> None:
    receiver.routes["/hook"] = reply(500)
    await made(endpoints, receiver.url("/hook"))
    await completed(store)
    for _ in range(len(RETRY_SCHEDULE_S) + 1):
        await come_due(engine)
        await deliver(deliveries)
    lost = await only(log)
    assert lost.next_attempt_at is None
    again = await log.redeliver(lost.id)
    assert again is not None
    assert (again.id, again.next_attempt_at is not None) == (lost.id, True)
    assert await deliver(deliveries) == 1
    (row,) = await fetch(
        engine, "SELECT extract(epoch FROM next_attempt_at - now())::float8 AS next_in FROM deliveries"
    )
    assert RETRY_SCHEDULE_S[0] - 2 < row["next_in"] <= RETRY_SCHEDULE_S[0] * 1.2
    receiver.routes["/hook"] = reply(204)
    await come_due(engine)
    await deliver(deliveries)
    done = await only(log)
    assert done.delivered_at is not None
    assert [attempt.n for attempt in done.log] == list(range(1, len(RETRY_SCHEDULE_S) + 4))
    assert len({seen.headers["webhook-id"] for seen in receiver.seen}) == 1


async def test_what_was_delivered_may_be_asked_for_again(
    deliveries: Deliveries, store: JobStore, log: DeliveryLog, receiver: HttpSource
) -> None:
    await completed(store, webhook_url=receiver.url("/hook"))
    await deliver(deliveries)
    delivery = await only(log)
    assert await log.redeliver(delivery.id, of_key="key_b") is None
    assert await log.redeliver(delivery.id, of_key="") is not None
    await deliver(deliveries)
    assert [seen.headers["webhook-id"] for seen in receiver.seen] == [delivery.id] * 2


async def test_what_is_being_sent_is_left_to_that(
    deliveries: Deliveries, endpoints: Endpoints, log: DeliveryLog, store: JobStore, receiver: HttpSource
) -> None:
    await made(endpoints, receiver.url("/hook"))
    await completed(store)
    (due,) = await deliveries.claim()
    found = await log.redeliver(due.id)
    assert found is not None
    assert found.state == "sending"
    assert await deliveries.claim() == []
    await deliveries.send(due)
    assert (await only(log)).delivered_at is not None


async def test_a_test_goes_the_way_of_all_events(
    deliveries: Deliveries, endpoints: Endpoints, log: DeliveryLog, receiver: HttpSource
) -> None:
    endpoint = await made(endpoints, receiver.url("/hook"), "key_a", [JobEvent.FAILED])
    sent = await log.test(endpoint.id, of_key="key_a")
    assert sent is not None
    assert await deliver(deliveries) == 1
    body = told(receiver.seen[0], SECRETS.of_endpoint(endpoint.id, 1))
    assert (body["type"], body["data"]) == ("test", {"endpoint_id": endpoint.id})
    found = await log.get(sent.id, of_key="key_a")
    assert found is not None
    assert (found.event, found.job_id, found.log[0].answer) == ("test", None, "thanks")


# -------------------------------------------------------------------- disabled


async def test_gone_disables_the_endpoint(
    deliveries: Deliveries,
    endpoints: Endpoints,
    log: DeliveryLog,
    store: JobStore,
    receiver: HttpSource,
    engine: AsyncEngine,
) -> None:
    receiver.routes["/hook"] = reply(410)
    endpoint = await made(endpoints, receiver.url("/hook"))
    other = await made(endpoints, receiver.url("/other"))
    await completed(store)
    await completed(store)
    for due in await deliveries.claim(1):
        await deliveries.send(due)
    while await deliver(deliveries):
        pass
    assert len([seen for seen in receiver.seen if seen.target == "/hook"]) == 1, "what else was owed is not sent"
    found = await endpoints.get(endpoint.id)
    assert found is not None
    assert found.disabled_at is not None
    assert found.disabled_reason is not None
    assert "410" in found.disabled_reason
    assert (await endpoints.get(other.id) or found).disabled_at is None
    await completed(store)
    assert len(await log.list(endpoint_id=endpoint.id)) == 2, "nothing more is written for it"
    lost = (await log.list(endpoint_id=endpoint.id))[0]
    for refused in (log.test(endpoint.id), log.redeliver(lost.id)):
        with pytest.raises(EndpointDisabled):
            await refused
    # Its owner enables it, and what was lost may be sent again.
    receiver.routes["/hook"] = reply(200)
    enabled = await endpoints.change(endpoint.id, enabled=True)
    assert enabled is not None
    assert (enabled.disabled_at, enabled.disabled_reason) == (None, None)
    await log.redeliver(lost.id)
    await completed(store)
    while await deliver(deliveries):
        pass
    ends = await fetch(
        engine, "SELECT 1 FROM deliveries WHERE delivered_at IS NOT NULL AND endpoint_id = :id", id=endpoint.id
    )
    assert len(ends) == 2


async def test_gone_from_a_url_that_was_changed_meanwhile_disables_nothing(
    deliveries: Deliveries, endpoints: Endpoints, store: JobStore, receiver: HttpSource
) -> None:
    receiver.routes["/hook"] = reply(410)
    endpoint = await made(endpoints, receiver.url("/hook"))
    await completed(store)
    (due,) = await deliveries.claim()
    await endpoints.change(endpoint.id, url=receiver.url("/other"))
    await deliveries.send(due)
    found = await endpoints.get(endpoint.id)
    assert found is not None
    assert found.disabled_at is None


async def test_gone_from_a_job_s_own_url_is_the_job_s_affair(
    deliveries: Deliveries, endpoints: Endpoints, store: JobStore, receiver: HttpSource
) -> None:
    receiver.routes["/hook"] = reply(410)
    endpoint = await made(endpoints, receiver.url("/other"))
    await completed(store, webhook_url=receiver.url("/hook"))
    while await deliver(deliveries):
        pass
    found = await endpoints.get(endpoint.id)
    assert found is not None
    assert found.disabled_at is None


async def test_failing_for_days_disables_nothing(
    deliveries: Deliveries, endpoints: Endpoints, store: JobStore, receiver: HttpSource, engine: AsyncEngine
) -> None:
    receiver.routes["/hook"] = reply(503)
    endpoint = await made(endpoints, receiver.url("/hook"))
    await completed(store)
    for _ in range(len(RETRY_SCHEDULE_S) + 1):
        await come_due(engine)
        await deliver(deliveries)
    assert await deliver(deliveries) == 0
    found = await endpoints.get(endpoint.id)
    assert found is not None
    assert found.disabled_at is None


async def test_disabled_while_it_is_sent_it_is_not_tried_again(
    deliveries: Deliveries, endpoints: Endpoints, log: DeliveryLog, store: JobStore, receiver: HttpSource
) -> None:
    receiver.routes["/hook"] = reply(500)
    endpoint = await made(endpoints, receiver.url("/hook"))
    await completed(store)
    (due,) = await deliveries.claim()
    await endpoints.change(endpoint.id, enabled=False)
    await deliveries.send(due)
    assert (await only(log)).next_attempt_at is None


# -------------------------------------------------------------------- the rest


async def test_what_is_owed_goes_to_the_new_url(
    deliveries: Deliveries, endpoints: Endpoints, store: JobStore, receiver: HttpSource
) -> None:
    endpoint = await made(endpoints, "http://127.0.0.2:1/wrong")
    await completed(store)
    await endpoints.change(endpoint.id, url=receiver.url("/other"))
    assert await deliver(deliveries) == 1
    assert [seen.target for seen in receiver.seen] == ["/other"]


async def test_a_key_has_so_many_and_no_more(endpoints: Endpoints) -> None:
    asked = (endpoints.create("key_a", f"https://h{n}.example/", ENDS) for n in range(MOST_OF_A_KEY + 5))
    made_of_them = await asyncio.gather(*asked)
    assert len([endpoint for endpoint in made_of_them if endpoint is not None]) == MOST_OF_A_KEY
    assert await endpoints.create("key_b", "https://h.example/", ENDS) is not None
    assert len(await endpoints.list(of_key="key_a", limit=100)) == MOST_OF_A_KEY


@pytest.mark.parametrize(
    ("asked", "wait_s"),
    [("7200", 7200), ("1", RETRY_SCHEDULE_S[0]), ("99999999999", 24 * 3600), ("soon", RETRY_SCHEDULE_S[0])],
)
async def test_a_receiver_may_ask_for_a_longer_pause(
    deliveries: Deliveries,
    endpoints: Endpoints,
    store: JobStore,
    receiver: HttpSource,
    engine: AsyncEngine,
    asked: str,
    wait_s: float,
) -> None:
    receiver.routes["/hook"] = reply(503, Retry_After=asked)
    await made(endpoints, receiver.url("/hook"))
    await completed(store)
    await deliver(deliveries)
    (row,) = await fetch(
        engine, "SELECT extract(epoch FROM next_attempt_at - now())::float8 AS next_in FROM deliveries"
    )
    assert wait_s - 10 < row["next_in"] <= max(wait_s, RETRY_SCHEDULE_S[0] * 1.2)


async def test_an_endpoint_that_is_deleted_while_a_job_ends_keeps_no_job_from_it(
    endpoints: Endpoints, store: JobStore, engine: AsyncEngine
) -> None:
    for _ in range(5):
        endpoint = await made(endpoints, "https://hooks.example/", events=ALL)
        await asyncio.gather(completed(store), endpoints.delete(endpoint.id))
    rows = await fetch(engine, "SELECT status FROM jobs")
    assert [row["status"] for row in rows] == ["completed"] * 5


async def test_who_disables_an_endpoint_sees_the_event_that_is_under_way(
    store: JobStore, endpoints: Endpoints, engine: AsyncEngine
) -> None:
    """Else the endpoint would be told of it all the same."""
    endpoint = await made(endpoints, "https://hooks.example/")
    job = await store.get(await completed(store))
    assert job is not None
    await execute(engine, "DELETE FROM deliveries")
    async with engine.begin() as db:
        assert await owe(db, job, JobEvent.COMPLETED)
        disabling = asyncio.create_task(endpoints.change(endpoint.id, enabled=False))
        await eventually(lambda: fetch(engine, "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))
    await disabling
    assert await fetch(engine, "SELECT next_attempt_at FROM deliveries") == [{"next_attempt_at": None}]
