"""What a video will cost and has cost, and when it will be done, where machines are rented for it."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

import httpx
import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from deployments.contract import Started
from serve_app.jobs.outlooks import Outlook, Outlooks
from serve_app.services import Services
from tests.fakes.cluster import FakeCluster, healthy
from tests.parts.serve_app.jobs.samples import completed, execute, jobs_of, lease_of, new_job, outcome, running, waiting

Generate = Callable[..., Awaitable[httpx.Response]]
WithKey = Callable[..., Awaitable[httpx.AsyncClient]]
#: An hour of the cheapest machine costs what 3600 s of a job do; the idle time is five minutes.
OUTLOOK = Outlook(start_s=300, usd_per_hour_low=0.36, usd_per_hour_high=0.72, start_usd=0.1)
#: Of ltx2: 15 s.
USUAL = {"low": pytest.approx(0.0015), "high": pytest.approx(0.1 + 0.72 * (15 + 300) / 3600)}


@pytest.fixture
async def rented(engine: AsyncEngine) -> Outlooks:
    outlooks = Outlooks(engine)
    await outlooks.note("ltx2", OUTLOOK)
    return outlooks


async def estimate(client: httpx.AsyncClient, **query: object) -> dict:
    answer = await client.get("/api/v1/estimate", params={"model": "ltx2", **query})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_lone_job_waits_for_its_machine_and_pays_for_it(client: httpx.AsyncClient, rented: Outlooks) -> None:
    found = await estimate(client)
    assert found == {"model": "ltx2", "jobs_ahead": 0, "eta_seconds": 315.0, "cost_estimate_usd": USUAL}


async def test_a_longer_video_takes_as_much_longer(client: httpx.AsyncClient, rented: Outlooks) -> None:
    found = await estimate(client, duration=10, recipe="quality")
    assert found["eta_seconds"] == pytest.approx(300 + 15 * 25 * 241 / 121)
    assert found["cost_estimate_usd"]["low"] == pytest.approx(0.0015 * 25 * 241 / 121)


async def test_jobs_ahead_are_waited_for_on_as_many_machines_as_they_are_worth(
    client: httpx.AsyncClient, services: Services, cluster: FakeCluster, engine: AsyncEngine, rented: Outlooks
) -> None:
    await execute(engine, "INSERT INTO runs VALUES ('1', 1, now(), 'ltx2', 'slot', 1, now(), 151, 'completed')")
    for _ in range(3):
        await services.store.submit(new_job())
    # Four jobs of 151 s are a little more than two starts of 300 s; there may be one machine only.
    assert (await estimate(client))["eta_seconds"] == 300 + 3 * 151 + 151
    cluster.states["ltx2"] = replace(healthy(), max_replicas=4)
    assert (await estimate(client))["eta_seconds"] == pytest.approx(300 + 3 * 151 / 2 + 151)
    cluster.states["ltx2"] = replace(healthy(), running_replicas=1)
    found = await estimate(client)
    assert (found["eta_seconds"], found["jobs_ahead"]) == (4 * 151, 3)


async def test_what_jobs_have_taken_is_learnt(client: httpx.AsyncClient, engine: AsyncEngine, rented: Outlooks) -> None:
    await execute(engine, "INSERT INTO runs VALUES ('1', 1, now(), 'ltx2', 'slot', 2, now(), 200, 'completed')")
    assert (await estimate(client))["eta_seconds"] == 400
    assert (await estimate(client))["cost_estimate_usd"]["low"] == pytest.approx(0.01)


async def test_while_none_is_rented_nobody_knows_when(client: httpx.AsyncClient, rented: Outlooks) -> None:
    await rented.note("ltx2", replace(OUTLOOK, code="cap_reached", message="$1.20 of $1.00 per hour"))
    found = await estimate(client)
    assert "eta_seconds" not in found
    assert (found["wait_code"], found["wait_reason"]) == ("cap_reached", "$1.20 of $1.00 per hour")
    assert found["cost_estimate_usd"] == USUAL


async def test_a_key_that_runs_as_much_as_it_may_is_told_so(services: Services, with_key: WithKey) -> None:
    mine, other = await with_key(limits={"running_jobs": 1}), await with_key()
    await running(services.store, key_id=mine.headers["x-key-id"])
    found = await estimate(mine)
    assert found["wait_code"] == "key_limit"
    assert found["wait_reason"].startswith("The key may have 1 job running at a time")
    assert "wait_code" not in await estimate(other)


async def test_before_the_first_offers_are_seen_there_is_no_price(client: httpx.AsyncClient, rented: Outlooks) -> None:
    await rented.note("ltx2", Outlook(start_s=300))
    assert await estimate(client) == {"model": "ltx2", "jobs_ahead": 0, "eta_seconds": 315.0}


async def test_without_a_fleet_nothing_is_promised(client: httpx.AsyncClient) -> None:
    assert await estimate(client) == {"model": "ltx2", "jobs_ahead": 0}


async def test_serve_need_not_answer_for_a_price(
    client: httpx.AsyncClient, generate: Generate, cluster: FakeCluster, rented: Outlooks
) -> None:
    cluster.error = RuntimeError("the controller is away")
    assert "eta_seconds" not in await estimate(client)
    answer = await generate()
    assert (answer.status_code, answer.json()["cost_estimate_usd"]) == (201, USUAL)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"model": "sora"}, "model"),
        ({"duration": 11}, "duration"),
        ({"length": 3}, "length"),
        ({"recipe": "x"}, "recipe"),
    ],
)
async def test_what_generate_would_refuse_is_refused(client: httpx.AsyncClient, query: dict, param: str) -> None:
    answer = await client.get("/api/v1/estimate", params={"model": "ltx2"} | query)
    assert (answer.status_code, answer.json()["param"]) == (422, param)


async def test_generate_answers_with_it(generate: Generate, client: httpx.AsyncClient, rented: Outlooks) -> None:
    created = (await generate(duration=10)).json()
    assert created.keys() == {"job_id", "model", "status", "created_at", "eta_seconds", "cost_estimate_usd"}
    assert created["eta_seconds"] == pytest.approx(300 + 15 * 241 / 121)
    job = (await client.get(f"/api/v1/jobs/{created['job_id']}")).json()
    assert job["cost_estimate_usd"] == created["cost_estimate_usd"]
    assert job["eta_seconds"] == pytest.approx(created["eta_seconds"])


async def test_a_job_has_its_estimate_until_its_bill_is_there(
    client: httpx.AsyncClient, services: Services, engine: AsyncEngine, rented: Outlooks
) -> None:
    job = await waiting(services.store)

    async def told() -> tuple[object, object]:
        body = (await client.get(f"/api/v1/jobs/{job.id}")).json()
        (listed,) = (await client.get("/api/v1/jobs")).json()["data"]
        money = (body.get("cost_usd"), body.get("cost_estimate_usd"))
        assert (listed.get("cost_usd"), listed.get("cost_estimate_usd")) == money
        return money

    assert await told() == (None, USUAL)
    (claimed,) = jobs_of(await services.store.claim_to_run("ltx2", 10))
    await services.store.start(Started(lease=lease_of(claimed), node="slot-1"))
    await execute(
        engine,
        "INSERT INTO rentals (label, slot_id, node_type, state, since, reserved_at, offer, host, stretch_at,"
        " worked_at) VALUES ('a', 'slot-1', 'gpu', 'busy', now(), now(), '', '', now(), now())",
    )
    await execute(
        engine, "INSERT INTO node_costs VALUES ('a', now(), now() + interval '1 h', 'gpu', 'busy', 0.2, 0.03, 0.02)"
    )
    await services.store.complete(outcome(lease_of(claimed)), "k")
    cost, estimated = await told()
    assert cost is None
    # By what has been learnt since.
    assert estimated is not None
    await execute(engine, "UPDATE rentals SET state = 'ended', ended_at = now(), why = 'dismissed'")
    assert await told() == (pytest.approx(0.25), None)


async def test_a_page_costs_as_many_queries_as_a_job(
    client: httpx.AsyncClient, services: Services, engine: AsyncEngine, rented: Outlooks
) -> None:
    statements: list[str] = []
    await completed(services.store)

    @event.listens_for(engine.sync_engine, "before_cursor_execute")
    def note(_: object, __: object, statement: str, *___: object) -> None:
        statements.append(statement)

    await client.get("/api/v1/jobs")
    one = len(statements)
    for _ in range(5):
        await completed(services.store)
    statements.clear()
    assert len((await client.get("/api/v1/jobs")).json()["data"]) == 6
    assert len(statements) == one
