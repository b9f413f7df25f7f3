"""Requests by the class of GPUs that can make them, and those that none can."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from deployments.classes import deployments
from deployments.contract import Ability
from deployments.registry import MODELS
from serve_app.jobs import abilities as abilities_module
from serve_app.jobs.conditions import Condition, Conditions, WaitCode
from serve_app.services import Services
from tests.fakes.cluster import FakeCluster, healthy
from tests.parts.serve_app.jobs.samples import execute, fetch, reported

BODY = {"model": "ltx2", "image_url": "https://pictures.example/a.png", "recipe": "standard"}
LARGE = {**BODY, "width": 1280, "height": 704, "duration": 5}
LARGER = {**BODY, "width": 1920, "height": 1088, "duration": 5}
SIZES = [1280 * 704 * 121, 1920 * 1088 * 121 - 1]
Generate = Callable[..., Awaitable[httpx.Response]]


@pytest.fixture(autouse=True)
async def _classes(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """The card of 40 GB makes less than LARGE, that of 80 GB no LARGER, and neither ``quality`` of any size but the
    smallest."""
    monkeypatch.setitem(MODELS, "ltx2", replace(MODELS["ltx2"], on_paper=None))
    monkeypatch.setattr(abilities_module, "REPEAT_S", 0)
    served = deployments({"ltx2": [80, 40]})
    await services.abilities.see(served, {each.name for each in served})
    for name, most in (("ltx2-40gb", SIZES[0] - 1), ("ltx2", SIZES[1])):
        await services.abilities.report(
            Ability(
                deployment=name,
                model="ltx2",
                random_weights=False,
                variants={"standard": most, "quality": 10},
                default_variant="standard",
            )
        )


async def deployment_of(engine: AsyncEngine, answer: httpx.Response) -> str:
    assert answer.status_code == 201, answer.text
    (found,) = await fetch(engine, "SELECT deployment FROM jobs WHERE id = :id", id=answer.json()["job_id"])
    return found["deployment"]


@pytest.mark.parametrize("path", ["/api/v1/generate", "/api/v1/generate?long"])
async def test_each_job_is_for_the_smallest_class_that_can_make_it(
    client: httpx.AsyncClient, engine: AsyncEngine, path: str
) -> None:
    answers = [await client.post(path, json=body) for body in (BODY, LARGE)]
    assert [await deployment_of(engine, answer) for answer in answers] == ["ltx2-40gb", "ltx2"]


@pytest.mark.parametrize("path", ["/api/v1/generate", "/api/v1/generate?long"])
@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        (
            LARGER,
            "duration",
            "No GPU here has the memory for this video with recipe standard; at most 4 s of 1920x1088 at 24 frames "
            "a second do.",
        ),
        (
            {**BODY, "recipe": "quality"},
            "duration",
            "not even a second of 1024x576 at 24 frames a second fits: ask for a smaller one. With recipe "
            "standard it can be made.",
        ),
    ],
)
async def test_what_no_class_can_make_is_refused_with_the_field_and_the_largest(
    client: httpx.AsyncClient, engine: AsyncEngine, path: str, body: dict[str, Any], param: str, said: str
) -> None:
    answer = await client.post(path, json=body)
    assert answer.status_code == 422
    problem = answer.json()
    assert (problem["code"], problem["param"]) == ("request_too_large", param)
    assert said in problem["detail"]
    assert await fetch(engine, "SELECT 1 FROM jobs") == []


async def test_a_variant_that_no_class_has(client: httpx.AsyncClient, services: Services) -> None:
    for name in ("ltx2", "ltx2-40gb"):
        found = (await reported(services.abilities))[name]
        await services.abilities.report(found.model_copy(update={"variants": {"standard": SIZES[1]}}))
    problem = (await client.post("/api/v1/generate", json={**BODY, "recipe": "quality"})).json()
    said = "recipe: No GPU here makes videos with recipe quality. With recipe standard it can be made."
    assert (problem["code"], problem["param"], problem["detail"]) == ("recipe_unavailable", "recipe", said)


async def test_an_estimate_is_of_the_class_that_would_make_it(client: httpx.AsyncClient, services: Services) -> None:
    await Conditions(services.engine).note("ltx2-40gb", Condition(WaitCode.NO_NODE_FITS, "No node is here."))
    small = await client.get("/api/v1/estimate", params={"model": "ltx2", "recipe": "standard"})
    large = await client.get("/api/v1/estimate", params={"model": "ltx2", **query(LARGE)})
    assert (small.json().get("wait_code"), large.json().get("wait_code")) == ("no_node_fits", None)
    larger = await client.get("/api/v1/estimate", params={"model": "ltx2", **query(LARGER)})
    assert (larger.status_code, larger.json()["code"]) == (422, "request_too_large")


def query(body: dict[str, Any]) -> dict[str, Any]:
    return {name: body[name] for name in ("width", "height", "duration", "recipe")}


async def test_a_retry_goes_by_what_there_is_now(
    client: httpx.AsyncClient, engine: AsyncEngine, services: Services
) -> None:
    job_id = (await client.post("/api/v1/generate", json=BODY)).json()["job_id"]
    await client.post(f"/api/v1/jobs/{job_id}/cancel")
    found = (await reported(services.abilities))["ltx2-40gb"]
    await services.abilities.report(found.model_copy(update={"variants": {"standard": 1}}))
    again = await client.post(f"/api/v1/jobs/{job_id}/retry")
    assert await deployment_of(engine, again) == "ltx2"
    await services.abilities.report(found.model_copy(update={"deployment": "ltx2", "variants": {"standard": 1}}))
    refused = await client.post(f"/api/v1/jobs/{job_id}/retry")
    assert (refused.status_code, refused.json()["code"]) == (422, "request_too_large")


async def test_a_create_asks_nothing_more_of_the_database(
    generate: Generate, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(abilities_module, "FRESH_S", 1000)
    services.abilities._known = services.abilities._anew()
    asked: list[None] = []
    read = services.abilities._read

    async def counted() -> Any:
        asked.append(None)
        return await read()

    services.abilities._known._ask = counted
    for _ in range(5):
        assert (await generate()).status_code == 201
    assert len(asked) == 1


async def test_a_job_waits_for_what_its_own_class_waits_for(client: httpx.AsyncClient, services: Services) -> None:
    await Conditions(services.engine).note("ltx2-40gb", Condition(WaitCode.NO_NODE_FITS, "No node is here."))
    small, large = [(await client.post("/api/v1/generate", json=body)).json()["job_id"] for body in (BODY, LARGE)]
    told = [(await client.get(f"/api/v1/jobs/{job_id}")).json().get("wait_code") for job_id in (small, large)]
    assert told == ["no_node_fits", None]


async def test_health_is_of_models_whatever_their_classes(
    anyone: httpx.AsyncClient, client: httpx.AsyncClient, services: Services, cluster: FakeCluster
) -> None:
    await client.post("/api/v1/generate", json=BODY)
    await client.post("/api/v1/generate", json=LARGE)
    cluster.states["ltx2-40gb"] = healthy()
    await Conditions(services.engine).note("ltx2-40gb", Condition(WaitCode.MODEL_UNAVAILABLE, "It cannot start."))
    found = (await anyone.get("/health")).json()
    # One of its classes works.
    assert found["models"] == {"ltx2": "ok", "wav2lip": "ok"}
    assert found["details"] == {"ltx2-40gb": "It cannot start."}
    assert found["queues"]["ltx2"]["pending"] == 2


async def test_health_says_what_is_down_on_all_classes(
    anyone: httpx.AsyncClient, services: Services, cluster: FakeCluster, engine: AsyncEngine
) -> None:
    cluster.states["ltx2-40gb"] = healthy()
    for name in ("ltx2", "ltx2-40gb"):
        await Conditions(engine).note(name, Condition(WaitCode.MODEL_UNAVAILABLE, "It cannot start."))
    found = (await anyone.get("/health")).json()
    assert (found["models"]["ltx2"], found["models"]["wav2lip"]) == ("down", "ok")
    await execute(engine, "DELETE FROM conditions")
