"""Webhook endpoints as a client makes and changes them, with a real receiver at the end."""

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from ipaddress import ip_network
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook

from serve_app.jobs.deliveries import Deliveries
from serve_app.jobs.endpoints import MOST_OF_A_KEY
from serve_app.jobs.webhook_event import JobEvent
from serve_app.outbound.client import SafeClient
from serve_app.services import Services
from tests.fakes.http_source import HttpSource, reply
from tests.parts.serve_app.jobs.samples import completed, fetch

URL = "/api/v1/webhooks"
Create = Callable[..., Awaitable[dict[str, Any]]]
WithKey = Callable[..., Awaitable[httpx.AsyncClient]]
Deliver = Callable[[], Coroutine[Any, Any, int]]


@pytest.fixture
async def receiver() -> AsyncIterator[HttpSource]:
    async with HttpSource({"/hook": reply(200, b"thanks")}) as source:
        yield source


@pytest.fixture
async def deliver(services: Services) -> AsyncIterator[Deliver]:
    """Send all that is due, as the dispatcher would."""
    async with SafeClient((ip_network("127.0.0.0/8"),)) as outbound:
        sender = Deliveries(services.engine, outbound, services.signing_secrets, services.result_url)

        async def deliver() -> int:
            due = await sender.claim()
            for delivery in due:
                await sender.send(delivery)
            return len(due)

        yield deliver


@pytest.fixture
def create(client: httpx.AsyncClient) -> Create:
    async def create(**body: Any) -> dict[str, Any]:
        answer = await client.post(URL, json=body)
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()
        return made

    return create


# -------------------------------------------------------------------- a life


async def test_an_endpoint_from_its_making_to_a_delivery(
    client: httpx.AsyncClient, create: Create, services: Services, receiver: HttpSource, deliver: Deliver
) -> None:
    made = await create(url=receiver.url("/hook"))
    assert (made["url"], made["enabled"]) == (receiver.url("/hook"), True)
    assert made["events"] == ["job.completed", "job.failed", "job.cancelled"]
    job_id = await completed(services.store)
    assert await deliver() == 1
    (seen,) = receiver.seen
    body = Webhook(made["secret"]).verify(seen.body.decode(), seen.headers)
    assert (body["type"], body["data"]["job_id"]) == ("job.completed", job_id)
    (delivery,) = (await client.get(f"{URL}/deliveries", params={"job_id": job_id})).json()["data"]
    assert delivery["id"] == seen.headers["webhook-id"]
    assert (delivery["state"], delivery["event"], delivery["endpoint_id"]) == ("delivered", "job.completed", made["id"])
    (attempt,) = delivery["attempts"]
    assert (attempt["n"], attempt["status"], attempt["answer"]) == (1, 200, "thanks")
    assert "error" not in attempt


async def test_what_is_looked_at_and_changed(client: httpx.AsyncClient, create: Create) -> None:
    made = await create(url="https://hooks.example/a", events=["job.failed", "job.started", "job.failed"])
    assert made["events"] == ["job.started", "job.failed"]
    path = f"{URL}/{made['id']}"
    assert (await client.get(path)).json() == made
    (listed,) = (await client.get(URL)).json()["data"]
    assert listed == {name: value for name, value in made.items() if name != "secret"}
    changed = (await client.patch(path, json={"url": "https://hooks.example/b", "events": ["job.cancelled"]})).json()
    assert (changed["url"], changed["events"]) == ("https://hooks.example/b", ["job.cancelled"])
    assert (await client.patch(path, json={})).json() == changed
    off = (await client.patch(path, json={"enabled": False})).json()
    assert (off["enabled"], off["disabled_reason"]) == (False, "Disabled by its owner.")
    refused = await client.post(f"{path}/test")
    assert (refused.status_code, refused.json()["code"]) == (409, "webhook_disabled")
    assert (await client.patch(path, json={"enabled": True})).json() == changed
    assert (await client.delete(path)).status_code == 204
    for answer in (await client.get(path), await client.delete(path), await client.patch(path, json={})):
        assert (answer.status_code, answer.json()["code"]) == (404, "webhook_not_found")


async def test_a_secret_is_rotated(client: httpx.AsyncClient, create: Create) -> None:
    made = await create(url="https://hooks.example/")
    path = f"{URL}/{made['id']}"
    rotated = (await client.post(f"{path}/rotate")).json()
    assert rotated["secret"] != made["secret"]
    assert "previous_secret_until" in rotated
    again = (await client.post(f"{path}/rotate", json={"overlap_s": 0})).json()
    assert len({made["secret"], rotated["secret"], again["secret"]}) == 3
    assert (await client.get(path)).json()["secret"] == again["secret"]
    too_long = await client.post(f"{path}/rotate", json={"overlap_s": 10**7})
    assert (too_long.status_code, too_long.json()["param"]) == (422, "overlap_s")


async def test_a_test_and_a_redelivery(
    client: httpx.AsyncClient, create: Create, receiver: HttpSource, deliver: Deliver
) -> None:
    made = await create(url=receiver.url("/hook"), events=["job.started"])
    receiver.routes["/hook"] = reply(500, b"not yet")
    sent = await client.post(f"{URL}/{made['id']}/test")
    assert (sent.status_code, sent.json()["state"], sent.json()["event"]) == (202, "pending", "test")
    assert "job_id" not in sent.json()
    await deliver()
    listed = {"endpoint_id": made["id"]}
    (delivery,) = (await client.get(f"{URL}/deliveries", params=listed)).json()["data"]
    assert (delivery["state"], delivery["error"]) == ("pending", "HTTP 500: not yet")
    receiver.routes["/hook"] = reply(200)
    again = await client.post(f"{URL}/deliveries/{delivery['id']}/redeliver")
    assert (again.status_code, again.json()["id"]) == (202, delivery["id"])
    assert await deliver() == 1
    (delivery,) = (await client.get(f"{URL}/deliveries", params=listed)).json()["data"]
    assert (delivery["state"], len(delivery["attempts"])) == ("delivered", 2)
    assert {seen.headers["webhook-id"] for seen in receiver.seen} == {sent.json()["id"]}
    Webhook(made["secret"]).verify(receiver.seen[-1].body.decode(), receiver.seen[-1].headers)


async def test_what_the_receiver_has_closed_says_so(
    client: httpx.AsyncClient, create: Create, receiver: HttpSource, deliver: Deliver
) -> None:
    receiver.routes["/hook"] = reply(410)
    made = await create(url=receiver.url("/hook"))
    sent = (await client.post(f"{URL}/{made['id']}/test")).json()
    await deliver()
    found = (await client.get(f"{URL}/{made['id']}")).json()
    assert (found["enabled"], found["disabled_reason"]) == (False, "The receiver has answered 410 Gone.")
    refused = await client.post(f"{URL}/deliveries/{sent['id']}/redeliver")
    assert (refused.status_code, refused.json()["code"]) == (409, "webhook_disabled")


# -------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "url"),
        ({"url": "ftp://hooks.example/"}, "url"),
        ({"url": "hooks.example"}, "url"),
        ({"url": "https://hooks.example/", "events": []}, "events"),
        ({"url": "https://hooks.example/", "events": ["job.progress"]}, "events.0"),
        ({"url": "https://hooks.example/", "events": ["test"]}, "events.0"),
        ({"url": "https://hooks.example/", "secret": "mine"}, "secret"),
    ],
)
async def test_a_bad_endpoint_is_named(client: httpx.AsyncClient, body: dict[str, Any], param: str) -> None:
    answer = await client.post(URL, json=body)
    assert (answer.status_code, answer.json()["param"]) == (422, param)


async def test_a_key_has_so_many_endpoints(client: httpx.AsyncClient, create: Create) -> None:
    for n in range(MOST_OF_A_KEY):
        await create(url=f"https://h{n}.example/")
    answer = await client.post(URL, json={"url": "https://one.more.example/"})
    assert (answer.status_code, answer.json()["code"]) == (409, "too_many_webhooks")
    first = (await client.get(URL, params={"limit": 15})).json()
    second = (await client.get(URL, params={"limit": 15, "after": first["last_id"]})).json()
    assert (first["has_more"], second["has_more"]) == (True, False)
    assert len({item["id"] for item in first["data"] + second["data"]}) == MOST_OF_A_KEY


@pytest.mark.parametrize("path", [URL, f"{URL}/deliveries"])
async def test_a_page_after_nothing_is_refused(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path, params={"after": "unknown"})
    assert (answer.status_code, answer.json()["param"]) == (404, "after")


async def test_what_is_no_endpoint_is_not_taken_for_one(client: httpx.AsyncClient) -> None:
    assert (await client.get(f"{URL}/secret")).json()["secret"].startswith("whsec_")
    for method, path in (("DELETE", "secret"), ("PATCH", "secret"), ("DELETE", "deliveries")):
        answer = await client.request(method, f"{URL}/{path}", json={})
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET")
    assert (await client.get(f"{URL}/other")).json()["code"] == "not_found"
    assert (await client.get(f"{URL}/whe_x")).status_code == 422
    assert (await client.post(f"{URL}/deliveries/msg_{0:032}/redeliver")).json()["code"] == "delivery_not_found"


# -------------------------------------------------------------------- whose it is


@pytest.fixture
async def ann(with_key: WithKey) -> httpx.AsyncClient:
    return await with_key(name="ann")


@pytest.fixture
async def bob(with_key: WithKey) -> httpx.AsyncClient:
    return await with_key(name="bob")


async def test_a_key_neither_sees_nor_touches_what_is_anothers(
    services: Services, ann: httpx.AsyncClient, bob: httpx.AsyncClient, client: httpx.AsyncClient
) -> None:
    made = (await ann.post(URL, json={"url": "https://ann.example/"})).json()
    path = f"{URL}/{made['id']}"
    job_id = await completed(services.store, key_id=ann.headers["x-key-id"])
    (delivery,) = (await ann.get(f"{URL}/deliveries")).json()["data"]
    before = await fetch(services.engine, "SELECT * FROM webhook_endpoints, deliveries")
    for query in ({}, {"job_id": job_id}, {"endpoint_id": made["id"]}):
        assert (await bob.get(f"{URL}/deliveries", params=query)).json()["data"] == []
    assert (await bob.get(URL)).json()["data"] == []
    for listed, after in ((URL, made["id"]), (f"{URL}/deliveries", delivery["id"])):
        assert (await bob.get(listed, params={"after": after})).status_code == 404
    touches = [
        ("GET", path),
        ("PATCH", path),
        ("DELETE", path),
        ("POST", f"{path}/rotate"),
        ("POST", f"{path}/test"),
        ("POST", f"{URL}/deliveries/{delivery['id']}/redeliver"),
    ]
    for method, touched in touches:
        body = {"enabled": False} if method == "PATCH" else None
        assert (await bob.request(method, touched, json=body)).status_code == 404, (method, touched)
    assert await fetch(services.engine, "SELECT * FROM webhook_endpoints, deliveries") == before
    # Whoever may do everything sees it as its owner does.
    for reader in (ann, client):
        assert (await reader.get(path)).json() == made


async def test_each_key_has_a_secret_of_its_own(
    services: Services, ann: httpx.AsyncClient, bob: httpx.AsyncClient, client: httpx.AsyncClient
) -> None:
    """With one for all, whoever has a key could forge for every receiver."""
    secrets = [(await each.get(f"{URL}/secret")).json()["secret"] for each in (ann, bob, client)]
    assert len(set(secrets)) == 3
    # As it was before there were other keys.
    assert secrets[-1] == services.settings.signing_secret


async def test_what_a_job_names_is_signed_with_its_keys_secret(
    ann: httpx.AsyncClient, services: Services, receiver: HttpSource, deliver: Deliver
) -> None:
    secret = (await ann.get(f"{URL}/secret")).json()["secret"]
    job_id = await completed(services.store, key_id=ann.headers["x-key-id"], webhook_url=receiver.url("/hook"))
    await deliver()
    body = Webhook(secret).verify(receiver.seen[0].body.decode(), receiver.seen[0].headers)
    assert (body["job_id"], body["status"]) == (job_id, "completed")


async def test_an_endpoint_hears_nothing_of_another_keys_jobs(
    services: Services, ann: httpx.AsyncClient, bob: httpx.AsyncClient
) -> None:
    assert (await bob.post(URL, json={"url": "https://bob.example/"})).status_code == 201
    await completed(services.store, key_id=ann.headers["x-key-id"])
    await completed(services.store)
    assert await fetch(services.engine, "SELECT 1 FROM deliveries") == []


async def test_a_link_to_the_video_is_of_the_api(
    services: Services, client: httpx.AsyncClient, create: Create, receiver: HttpSource, deliver: Deliver
) -> None:
    made = await create(url=receiver.url("/hook"))
    await completed(services.store)
    await deliver()
    body = Webhook(made["secret"]).verify(receiver.seen[0].body.decode(), receiver.seen[0].headers)
    assert body["data"]["video_url"].startswith(services.settings.base_url)


async def test_the_schema_says_what_an_endpoint_is_told(anyone: httpx.AsyncClient) -> None:
    schema = (await anyone.get("/openapi.json")).json()
    assert schema["webhooks"].keys() == {*JobEvent, "test"}
    for name, told in schema["webhooks"].items():
        reference = told["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        body = schema["components"]["schemas"][reference.rsplit("/", 1)[1]]
        assert body["properties"]["type"]["const"] == name
        assert {"timestamp", "data"} <= set(body["required"])
        assert {item["name"] for item in told["post"]["parameters"]} == {
            "webhook-id",
            "webhook-timestamp",
            "webhook-signature",
        }
