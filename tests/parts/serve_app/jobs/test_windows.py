"""The windows of models for which machines are rented, and what the launcher says of them."""

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from deployments.registry import MODELS
from serve_app.jobs.conditions import Condition, Conditions
from serve_app.jobs.demand import demands
from serve_app.jobs.fleet_size import Capacity
from serve_app.jobs.outlooks import Outlook, Outlooks
from serve_app.jobs.store import JobStore
from serve_app.jobs.windows import Windows
from tests.parts.serve_app.jobs.samples import api_key, execute, new_job

CAPPED = Outlook(start_s=300, code="cap_reached", message="$1.20 of $1.00 per hour")


async def submit(store: JobStore, count: int, key: str = "") -> None:
    for _ in range(count):
        await store.submit(new_job(key_id=key))


async def learn(engine: AsyncEngine, *seconds: float, model: str = "ltx2", outcome: str = "completed") -> None:
    for number, busy_s in enumerate(seconds):
        await execute(
            engine,
            "INSERT INTO runs SELECT :id, 1, now(), :model, 'slot', 2, now() + make_interval(secs => :n), :busy,"
            " :outcome",
            id=f"{outcome} {number}",
            model=model,
            n=number,
            busy=busy_s,
            outcome=outcome,
        )


def capacity(running: int = 0, most: int = 4) -> Capacity:
    return Capacity(running=running, most=most, slots=3)


async def window(engine: AsyncEngine, found: Capacity) -> int:
    return (await Windows(engine).of({"ltx2": found}))["ltx2"]


async def test_without_rented_machines_it_is_as_large_as_the_deployment(store: JobStore, engine: AsyncEngine) -> None:
    await submit(store, 1)
    assert await window(engine, capacity()) == 13


async def test_with_them_it_follows_the_work(store: JobStore, engine: AsyncEngine) -> None:
    await Outlooks(engine).note("ltx2", Outlook(start_s=150))
    await learn(engine, 100.0)
    sizes = []
    for _ in range(10):
        await submit(store, 1)
        sizes.append(await window(engine, capacity()))
    # Two calls for each machine, of which one is worth it for every three jobs.
    assert sizes == [2, 2, 2, 4, 4, 4, 6, 6, 6, 13]
    # Other models are none of its business.
    assert (await Windows(engine).of({"wav2lip": capacity()}))["wav2lip"] == 13


async def test_replicas_that_run_get_their_jobs(store: JobStore, engine: AsyncEngine) -> None:
    await Outlooks(engine).note("ltx2", Outlook(start_s=3000))
    await submit(store, 3)
    assert await window(engine, capacity(running=2)) == 4


async def test_while_nothing_can_be_rented_one_wish_is_enough(store: JobStore, engine: AsyncEngine) -> None:
    await Outlooks(engine).note("ltx2", CAPPED)
    await submit(store, 1000)
    assert await window(engine, capacity()) == 2
    # Those that are rented already are not to wait for others.
    assert await window(engine, capacity(running=1)) == 13


async def test_jobs_that_the_limit_of_their_key_holds_back_are_no_reason_to_rent(
    store: JobStore, engine: AsyncEngine
) -> None:
    await Outlooks(engine).note("ltx2", Outlook(start_s=150))
    await learn(engine, 100.0)
    await api_key(engine, "key_1", running_jobs=1)
    await submit(store, 100, "key_1")
    assert await window(engine, capacity()) == 2
    found = (await demands(engine, ["ltx2"]))["ltx2"]
    assert (found.backlog, found.at_once) == (100, 1)
    # A claimed one counts as well, and other keys' jobs are worth what they were.
    await store.claim_for_intake(1)
    await submit(store, 2, "key_2")
    assert (await demands(engine, ["ltx2"]))["ltx2"].at_once == 3
    await execute(engine, "UPDATE api_keys SET running_jobs = NULL")
    assert await window(engine, capacity()) == 13


async def test_a_launcher_that_is_away_is_believed_less_and_less(store: JobStore, engine: AsyncEngine) -> None:
    await Outlooks(engine).note("ltx2", CAPPED)
    for away_s, expected in ((100, CAPPED), (200, Outlook(start_s=300)), (3700, None)):
        await execute(engine, "UPDATE outlooks SET seen_at = now() - make_interval(secs => :s)", s=away_s)
        assert (await Outlooks(engine).current()).get("ltx2") == expected
        shown = (await Conditions(engine).current()).get("ltx2")
        assert shown == (expected and expected.condition)


async def test_what_it_says_now_is_what_counts(engine: AsyncEngine) -> None:
    outlooks = Outlooks(engine)
    await outlooks.note("ltx2", CAPPED)
    full = Outlook(start_s=200, usd_per_hour_low=0.5, usd_per_hour_high=0.8, start_usd=0.1)
    await outlooks.note("ltx2", full)
    await outlooks.note("wav2lip", CAPPED)
    assert await outlooks.current() == {"ltx2": full, "wav2lip": CAPPED}


@pytest.mark.parametrize(("seen", "shown"), [("no_node_fits", "cap_reached"), ("model_unavailable", "seen")])
async def test_it_knows_better_why_there_is_no_node(engine: AsyncEngine, seen: str, shown: str) -> None:
    await Conditions(engine).note("ltx2", Condition(seen, "seen"))
    await Outlooks(engine).note("ltx2", CAPPED)
    current = (await Conditions(engine).current())["ltx2"]
    assert current == (CAPPED.condition if shown == "cap_reached" else Condition(seen, "seen"))


async def test_a_job_s_time_is_the_middle_of_the_latest_videos(store: JobStore, engine: AsyncEngine) -> None:
    async def run_s() -> float:
        return (await demands(engine, ["ltx2"]))["ltx2"].run_s

    assert await run_s() == MODELS["ltx2"].expected_run_s
    await learn(engine, 9000.0, outcome="failed")
    await learn(engine, 1.0, model="wav2lip")
    assert await run_s() == MODELS["ltx2"].expected_run_s
    await execute(engine, "DELETE FROM runs")
    # The first ten are older than the latest fifty.
    await learn(engine, *([5000.0] * 10), *([100.0] * 30), *([140.0] * 19), 9000.0)
    assert await run_s() == 100
    await execute(engine, "DELETE FROM runs WHERE busy_s = 100")
    assert await run_s() == 140
    # All of them asked for twice as much as usual.
    assert (await demands(engine, ["ltx2"]))["ltx2"].unit_s == 70


async def test_the_backlog_is_what_waits_and_what_runs(store: JobStore, engine: AsyncEngine) -> None:
    await submit(store, 3)
    await execute(
        engine,
        "INSERT INTO jobs (id, model, status, lease_token, lease_expires_at, completed_at) VALUES"
        " ('1', 'ltx2', 'processing', 'x', now(), NULL), ('2', 'ltx2', 'cancelled', NULL, NULL, now()),"
        " ('3', 'wav2lip', 'queued', NULL, NULL, NULL)",
    )
    found = await demands(engine, ["ltx2", "wav2lip"])
    assert {model: demand.backlog for model, demand in found.items()} == {"ltx2": 4, "wav2lip": 1}
