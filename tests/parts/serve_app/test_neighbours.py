"""Nobody's junk is on another's path."""

from itertools import count, repeat
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncEngine

from serve_app.jobs.job import Status
from tests.parts.serve_app.jobs.samples import fetch
from tests.parts.serve_app.neighbourhood import neighbourhood


async def test_one_users_junk_is_not_on_anothers_path(engine: AsyncEngine, database_url: str, tmp_path: Path) -> None:
    """300 webhooks to names whose servers never answer, 20 to a receiver that drips; inputs: 8 on such names, 9 in
    chunks of one byte, 2 from a server that falls silent, 4 that take 20 s to decode. All of them are ann's."""
    async with neighbourhood(engine, database_url, tmp_path) as place:
        _, undisturbed = await place.video("bob")
        anns = await place.annoy(repeat("ann"))
        taken = []
        for _ in range(5):
            job, took = await place.video("bob")
            assert (job.status, job.attempt, job.faults) == (Status.COMPLETED, 1, 0)
            taken.append(took)
        print(f"\nbob alone {undisturbed:.2f} s, beside ann {' '.join(f'{took:.2f}' for took in taken)} s")
        # He overtook her: what she has begun is not over, though it was there before him.
        still = [await place.store.get(job.id) for job in anns]
        assert any(job is not None and not job.status.terminal for job in still)
        (owed,) = await fetch(
            engine,
            "SELECT count(*) AS n FROM deliveries WHERE owner = '/ann' AND delivered_at IS NULL AND attempts < 2",
        )
        assert owed["n"] > 200
        attempts = await fetch(
            engine, "SELECT attempts FROM deliveries WHERE owner = '/bob' AND delivered_at IS NOT NULL"
        )
        assert [row["attempts"] for row in attempts] == [1] * 6


async def test_one_keys_junk_is_not_on_anothers_path(engine: AsyncEngine, database_url: str, tmp_path: Path) -> None:
    """The same, but each of it in the name of another user whom the key has invented."""
    async with neighbourhood(engine, database_url, tmp_path) as place:
        _, undisturbed = await place.video("bob", key="key_1")
        junk = await place.annoy((f"user {n}" for n in count()), key="many")
        taken = []
        for _ in range(3):
            job, took = await place.video("bob", key="key_1")
            assert (job.status, job.attempt, job.faults) == (Status.COMPLETED, 1, 0)
            taken.append(took)
        print(f"\nbob alone {undisturbed:.2f} s, beside the key {' '.join(f'{took:.2f}' for took in taken)} s")
        still = [await place.store.get(job.id) for job in junk]
        assert any(job is not None and not job.status.terminal for job in still)
        (owed,) = await fetch(
            engine,
            "SELECT count(*) AS n FROM deliveries WHERE owner LIKE 'many/%' AND delivered_at IS NULL AND attempts = 0",
        )
        assert owed["n"] > 100
