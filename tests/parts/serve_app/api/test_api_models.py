"""``GET /api/v1/models``: what can be asked for, and of which GPUs."""

from dataclasses import replace
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from deployments.contract import ANY_SIZE, Ability
from deployments.registry import MODELS
from tests.parts.serve_app.jobs.samples import deployed, execute


async def models(client: httpx.AsyncClient) -> dict[str, dict[str, Any]]:
    answer = await client.get("/api/v1/models")
    assert answer.status_code == 200, answer.text
    return {model["model"]: model for model in answer.json()}


LTX2 = Ability(
    deployment="ltx2",
    model="ltx2",
    weights="2.3",
    random_weights=False,
    variants={"fast": 900, "standard": 800},
    default_variant="fast",
    plan="all resident",
).model_dump()


async def test_models_describe_what_generate_takes(client: httpx.AsyncClient) -> None:
    found = await models(client)
    assert found.keys() == MODELS.keys()
    assert found["ltx2"]["params_schema"]["properties"]["duration"]["maximum"] == 10
    assert [(item["name"], item["optional"]) for item in found["ltx2"]["inputs"]] == [("image", True)]
    assert [item["optional"] for item in found["wav2lip"]["inputs"]] == [False, False]
    assert (found["ltx2"]["variant_field"], found["ltx2"]["size_unit"]) == ("recipe", "width x height x (frames + 7)")
    assert (found["wav2lip"]["variant_field"], found["wav2lip"]["size_unit"]) == (None, None)
    # Nobody has written any down yet.
    assert [model["deployments"] for model in found.values()] == [[], []]


async def test_a_deployment_tells_what_its_replicas_have_said(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await deployed(engine, "ltx2", None, LTX2)
    unlimited = Ability(deployment="wav2lip", model="wav2lip", random_weights=True).model_dump()
    await deployed(engine, "wav2lip", None, unlimited)
    found = await models(client)
    (ltx2,) = found["ltx2"]["deployments"]
    assert ltx2.pop("reported_at").startswith("20")
    assert ltx2 == {
        "deployment": "ltx2",
        "gpu_memory_gib": None,
        "available": True,
        "weights": "2.3",
        "random_weights": False,
        "variants": [
            {"name": "fast", "default": True, "max_size": 900},
            {"name": "standard", "default": False, "max_size": 800},
        ],
    }
    (wav2lip,) = found["wav2lip"]["deployments"]
    assert (wav2lip["weights"], wav2lip["random_weights"]) == (None, True)
    # JavaScript need not know how large the largest number is.
    assert wav2lip["variants"] == [{"name": "", "default": True, "max_size": None}]


async def test_until_a_replica_has_spoken_it_is_what_there_is_on_paper(
    client: httpx.AsyncClient, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest class first; what another version has said, or one of long ago, is not believed."""
    paper = {80: {"standard": 80, "quality": 0}, 40: {"standard": 40}, 24: {"": ANY_SIZE}}
    monkeypatch.setitem(MODELS, "ltx2", replace(MODELS["ltx2"], on_paper=paper.__getitem__))
    await deployed(engine, "ltx2-24gb", 24)
    await deployed(engine, "ltx2", 80, LTX2 | {"from": "the future"})
    await deployed(engine, "ltx2-40gb", 40, LTX2, ago_s=48 * 3600)
    await deployed(engine, "wav2lip")
    said = await models(client)
    # On whatever node it comes to run, nobody knows.
    assert [each["variants"] for each in said["wav2lip"]["deployments"]] == [None]
    found = said["ltx2"]["deployments"]
    assert [(each["deployment"], each["gpu_memory_gib"]) for each in found] == [
        ("ltx2", 80), ("ltx2-40gb", 40), ("ltx2-24gb", 24)
    ]  # fmt: skip
    assert [[(each["name"], each["max_size"]) for each in one["variants"]] for one in found] == [
        [("standard", 80)], [("standard", 40)], [("", None)]
    ]  # fmt: skip
    assert [(each["weights"], each["random_weights"], each["reported_at"]) for each in found] == [
        (None, None, None)
    ] * 3


async def test_a_class_that_is_not_to_be_had_says_so(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await deployed(engine, "ltx2", None, LTX2)
    await execute(engine, "UPDATE abilities SET had_at = NULL")
    (ltx2,) = (await models(client))["ltx2"]["deployments"]
    assert ltx2["available"] is False


async def test_a_deployment_of_a_model_that_is_gone_is_no_hindrance(
    client: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await deployed(engine, "sora", 80)
    assert (await models(client)).keys() == MODELS.keys()
