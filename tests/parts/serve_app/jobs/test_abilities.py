"""Which deployment makes a job: what the dispatcher writes down, and what follows for who reads it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from deployments.classes import deployments
from deployments.contract import Ability
from deployments.registry import MODELS
from serve_app.jobs import abilities as abilities_module
from serve_app.jobs.abilities import Abilities
from serve_app.jobs.assignment import TooLarge
from serve_app.jobs.demand import demands
from serve_app.jobs.job import Job
from serve_app.jobs.reads import JobReads
from serve_app.jobs.store import JobStore
from tests.parts.serve_app.jobs.samples import execute, fetch, jobs_of, new_job, reported, row, waiting

SERVED = deployments({"ltx2": [80, 40]})
BOTH = {"ltx2", "ltx2-40gb", "wav2lip"}


@pytest.fixture
def abilities(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> Abilities:
    monkeypatch.setattr(abilities_module, "FRESH_S", 0)
    monkeypatch.setattr(abilities_module, "REPEAT_S", 0)
    # Every class is expected to make everything, until a replica says less.
    monkeypatch.setitem(MODELS, "ltx2", replace(MODELS["ltx2"], on_paper=None))
    return Abilities(engine)


def said(deployment: str, most: int, replica: str = "", variant: str = "fast") -> Ability:
    return Ability(
        deployment=deployment,
        model="ltx2",
        random_weights=False,
        replica=replica,
        variants={variant: most},
        default_variant=variant,
    )


async def as_if_said(engine: AsyncEngine, replica: str, ago_s: float) -> None:
    """So long ago."""
    at = "to_jsonb(extract(epoch FROM now()) - CAST(:ago_s AS float))"
    change = f"UPDATE abilities SET said = jsonb_set(said, ARRAY[:replica, 'at'], {at}) WHERE said ? :replica"
    await execute(engine, change, replica=replica, ago_s=ago_s)


async def placed(abilities: Abilities, size: int, variant: str = "") -> str:
    return (await abilities.assigned(new_job(size=size, variant=variant))).deployment


async def test_on_paper_goes_until_a_replica_speaks(abilities: Abilities, monkeypatch: pytest.MonkeyPatch) -> None:
    paper = replace(MODELS["ltx2"], on_paper=lambda gib: {"fast": gib, "quality": gib // 2})
    monkeypatch.setitem(MODELS, "ltx2", paper)
    await abilities.see(SERVED, BOTH)
    assert [await placed(abilities, *asked) for asked in ((40, "fast"), (41, "fast"), (20, ""), (21, ""))] == [
        *("ltx2-40gb", "ltx2"),
        *("ltx2-40gb", "ltx2"),
    ]
    await abilities.report(said("ltx2-40gb", 60))
    # A card that is larger than its class says no more than the class.
    found = [await placed(abilities, *asked) for asked in ((40, "fast"), (40, ""), (41, "fast"))]
    assert found == ["ltx2-40gb", "ltx2-40gb", "ltx2"]
    # It has no such recipe.
    assert await placed(abilities, 1, "quality") == "ltx2"
    # One that takes any node is not known by its class.
    await abilities.see(deployments({}), BOTH)
    assert await placed(abilities, 10**6) == "ltx2"


async def test_before_anything_is_known_the_first_makes_everything(abilities: Abilities) -> None:
    assert await placed(abilities, 10**12) == ""


async def test_the_smallest_that_is_here_makes_it(abilities: Abilities) -> None:
    await abilities.see(SERVED, BOTH)
    await abilities.report(said("ltx2-40gb", 50))
    await abilities.report(said("ltx2", 100))
    assert [await placed(abilities, size) for size in (50, 51, 100)] == ["ltx2-40gb", "ltx2", "ltx2"]
    with pytest.raises(TooLarge) as refused:
        await placed(abilities, 101)
    assert refused.value.most == {"": 100, "fast": 100}
    with pytest.raises(TooLarge):
        await placed(abilities, 1, "quality")


async def test_a_class_is_expected_back_for_a_while(abilities: Abilities, engine: AsyncEngine) -> None:
    await abilities.see(SERVED, BOTH)
    await abilities.see(SERVED, BOTH - {"ltx2-40gb"})
    assert await placed(abilities, 1) == "ltx2-40gb"
    await execute(engine, "UPDATE abilities SET had_at = had_at - interval '130 s' WHERE deployment = 'ltx2-40gb'")
    assert await placed(abilities, 1) == "ltx2"
    assert (await abilities.here())["ltx2"] == {"ltx2"}


async def test_what_is_not_served_any_more_is_forgotten_and_old_words_are_not_believed(
    abilities: Abilities, engine: AsyncEngine
) -> None:
    await abilities.see(SERVED, BOTH)
    await abilities.report(said("ltx2-40gb", 50))
    assert set(await reported(abilities)) == {"ltx2-40gb"}
    await as_if_said(engine, "", abilities_module.REPORTED_S + 60)
    assert await reported(abilities) == {}
    assert await placed(abilities, 51) == "ltx2-40gb"
    await abilities.see(deployments({}), BOTH)
    assert [each["deployment"] for each in await fetch(engine, "SELECT deployment FROM abilities ORDER BY 1")] == [
        "ltx2",
        "wav2lip",
    ]
    # And what another version said of itself is passed over.
    await abilities.report(said("ltx2", 50))
    await execute(engine, """UPDATE abilities SET said = jsonb_set(said, '{"", ability}', '{"odd": 1}')""")
    assert await placed(abilities, 10**9) == "ltx2"


async def test_the_largest_replica_of_a_deployment_counts_as_long_as_it_speaks(
    abilities: Abilities, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their cards and hosts differ: what one can make is not refused since another cannot."""
    await abilities.see(deployments({}), BOTH)
    await abilities.report(said("ltx2", 100, "large"))
    await abilities.report(said("ltx2", 50, "small"))
    await abilities.report(said("ltx2", 7, "odd", "quality"))
    assert [await placed(abilities, *asked) for asked in ((100, "fast"), (7, "quality"), (7, ""))] == ["ltx2"] * 3
    with pytest.raises(TooLarge) as refused:
        await placed(abilities, 101, "fast")
    # The default is the latest one's.
    assert refused.value.most == {"fast": 100, "quality": 7}
    assert (await reported(abilities))["ltx2"].replica == "odd"
    # What it says next takes the place of what it said.
    await abilities.report(said("ltx2", 60, "large"))
    with pytest.raises(TooLarge):
        await placed(abilities, 61, "fast")
    await as_if_said(engine, "large", abilities_module.REPORTED_S + 60)
    with pytest.raises(TooLarge):
        await placed(abilities, 51, "fast")
    # And so is forgotten who was replaced, and those that are too many.
    monkeypatch.setattr(abilities_module, "MOST_REPLICAS", 2)
    await abilities.report(said("ltx2", 50, "next"))
    (kept,) = await fetch(engine, "SELECT said FROM abilities WHERE deployment = 'ltx2'")
    assert set(kept["said"]) == {"odd", "next"}


async def test_what_was_said_of_another_class_is_void(abilities: Abilities) -> None:
    async def known() -> set[str]:
        return set(await reported(abilities))

    # It speaks before anybody has looked.
    await abilities.report(said("ltx2", 50))
    await abilities.see(SERVED, BOTH)
    assert await known() == {"ltx2"}
    await abilities.see(deployments({"ltx2": [80, 40, 24]}), BOTH)
    assert await known() == {"ltx2"}
    await abilities.see(deployments({"ltx2": [48]}), BOTH)
    assert await known() == set()
    for classes in ({}, {"ltx2": [48]}):
        await abilities.report(said("ltx2", 50))
        await abilities.see(deployments(classes), BOTH)
        assert await known() == set()


async def test_looks_that_see_the_same_write_nothing(
    abilities: Abilities, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(abilities_module, "REPEAT_S", 1000)
    await abilities.see(SERVED, BOTH)
    before = await fetch(engine, "SELECT deployment, had_at FROM abilities ORDER BY 1")
    await abilities.see(SERVED, BOTH)
    assert await fetch(engine, "SELECT deployment, had_at FROM abilities ORDER BY 1") == before
    await abilities.see(SERVED, set())
    await abilities.see(SERVED, BOTH)
    assert await fetch(engine, "SELECT deployment, had_at FROM abilities ORDER BY 1") != before


# ---------------------------------------------------------------- lines by deployment


async def of(store: JobStore, *names: str) -> Sequence[Job]:
    return [await waiting(store, deployment=name) for name in names]


async def claimed(store: JobStore, name: str, window: int = 10) -> list[str]:
    return [job.id for job in jobs_of(await store.claim_to_run(name, window))]


async def test_each_deployment_has_its_line_its_window_and_its_places(store: JobStore, reads: JobReads) -> None:
    large, small, behind, default = await of(store, "ltx2", "ltx2-40gb", "ltx2-40gb", "")
    assert (large.deployment, small.deployment, default.deployment) == ("ltx2", "ltx2-40gb", "ltx2")
    places = {job.id: (await reads.get(job.id)).position for job in (large, small, behind, default)}
    assert list(places.values()) == [0, 0, 1, 1]
    assert await claimed(store, "ltx2-40gb", 1) == [small.id]
    # What the one has in flight is no room of the other.
    assert await claimed(store, "ltx2", 2) == [large.id, default.id]
    assert await claimed(store, "ltx2-40gb", 1) == []


async def test_work_is_counted_by_deployment(store: JobStore, engine: AsyncEngine) -> None:
    await of(store, "ltx2", "ltx2-40gb", "ltx2-40gb")
    await execute(
        engine,
        "INSERT INTO runs (job_id, attempt, started_at, model, assigned, node, effort, ended_at, busy_s, outcome)"
        " VALUES ('x', 1, now(), 'ltx2', 'ltx2-40gb', 'slot', 1, now() + interval '9 s', 7, 'completed')",
    )
    found = await demands(engine, ["ltx2", "ltx2-40gb"])
    assert {name: (each.backlog, each.run_s) for name, each in found.items()} == {
        "ltx2": (1, MODELS["ltx2"].expected_run_s),
        "ltx2-40gb": (2, 7),
    }


async def test_a_job_that_moves_changes_lines_and_keeps_its_age(store: JobStore, engine: AsyncEngine) -> None:
    moved, other = await of(store, "ltx2-40gb", "ltx2")
    await store.move(moved, "ltx2")
    assert await claimed(store, "ltx2-40gb") == []
    assert await claimed(store, "ltx2", 1) == [moved.id]
    assert (await demands(engine, ["ltx2", "ltx2-40gb"]))["ltx2-40gb"].backlog == 0
    # It was claimed since: what was read before decides nothing.
    await store.move(moved, "ltx2-40gb")
    assert (await row(engine, moved.id))["deployment"] == "ltx2"
    (now,) = [job for job in [await store.get(moved.id)] if job is not None]
    await store.move(now, "ltx2-40gb")
    found = await row(engine, moved.id)
    assert (found["deployment"], found["lease_token"], found["attempt"]) == ("ltx2-40gb", None, 0)
    assert await claimed(store, "ltx2") == [other.id]


async def test_who_waits_elsewhere_is_found_page_by_page(store: JobStore) -> None:
    jobs = await of(store, "ltx2", *["ltx2-24gb"] * 3)
    astray = sorted(job.id for job in jobs[1:])
    first = await store.elsewhere({"ltx2"}, "ltx2", "", 2)
    assert [job.id for job in first] == astray[:2]
    assert [job.id for job in await store.elsewhere({"ltx2"}, "ltx2", first[-1].id, 2)] == astray[2:]
    assert await store.elsewhere({"ltx2"}, "wav2lip", "", 2) == []


async def test_where_nobody_waits_elsewhere_no_job_is_read(store: JobStore, engine: AsyncEngine) -> None:
    """It is asked all the time, and a whole queue may wait where it should. See ``test_cost.py``."""
    await of(store, "ltx2", "ltx2-40gb")
    asked: list[str] = []

    def hear(*execution: Any) -> None:
        asked.append(execution[2])

    event.listen(engine.sync_engine, "before_cursor_execute", hear)
    try:
        assert await store.elsewhere({"ltx2", "ltx2-40gb"}, "ltx2", "", 2) == []
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", hear)
    assert len(asked) == 1
    assert "FROM jobs" not in asked[0]
