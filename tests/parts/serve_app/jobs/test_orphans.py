"""Media of nobody is found and deleted, and nothing else."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from serve_app.jobs import orphans as module
from serve_app.jobs.orphans import Orphans
from serve_app.jobs.store import JobStore
from serve_app.storage import keys
from serve_app.storage.base import StorageError
from serve_app.storage.local import LocalStorage
from tests.parts.serve_app.jobs.samples import execute, new_job

DAY = 24 * 3600


class Hours:
    def __init__(self) -> None:
        self.later = 0.0

    def __call__(self) -> float:
        return time.time() + self.later * 3600


@pytest.fixture
def clock() -> Hours:
    return Hours()


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path, "http://127.0.0.1:1", b"k" * 32)


@pytest.fixture
def orphans(engine: AsyncEngine, storage: LocalStorage, clock: Hours) -> Orphans:
    return Orphans(engine, storage, clock)


async def once() -> AsyncIterator[bytes]:
    yield b"x"


async def put(storage: LocalStorage, folder: str) -> tuple[str, str, str]:
    made = keys.upload(folder, "image"), keys.verified(folder, "image", "png"), keys.output(folder, 1)
    for key in made:
        await storage.write(key, once(), 10)
    return made


async def there(storage: LocalStorage, made: tuple[str, ...]) -> list[bool]:
    return [await storage.stat(key) is not None for key in made]


async def a_round(orphans: Orphans, calls: int = 2) -> None:
    """Both folders, a page of each at least."""
    for _ in range(calls):
        assert await orphans.sweep() == 0


async def test_what_is_put_after_a_job_is_gone_goes_in_a_day(
    store: JobStore, orphans: Orphans, storage: LocalStorage, clock: Hours
) -> None:
    """The link to upload outlives its job, and the note that the delete left is worked off by then."""
    gone, live = await store.open_upload(None), await store.submit(new_job())
    await store.delete(gone.id)
    late, kept = await put(storage, gone.folder), await put(storage, live.folder)
    await a_round(orphans)
    # Too young: whoever wrote it may be about to say so.
    assert await there(storage, late) == [True] * 3
    clock.later = 25
    await a_round(orphans)
    assert await there(storage, late) == [False] * 3
    assert await there(storage, kept) == [True] * 3


async def test_a_job_of_the_same_id_keeps_its_own(
    store: JobStore, orphans: Orphans, storage: LocalStorage, clock: Hours
) -> None:
    job = await store.submit(new_job())
    mine, other = await put(storage, job.folder), await put(storage, f"{job.id}/{'0' * 16}")
    clock.later = 25
    await a_round(orphans)
    assert (await there(storage, mine), await there(storage, other)) == ([True] * 3, [False] * 3)


async def test_media_of_an_older_version_stay_with_their_job(
    store: JobStore, engine: AsyncEngine, orphans: Orphans, storage: LocalStorage, clock: Hours
) -> None:
    job = await store.submit(new_job())
    await execute(engine, "UPDATE jobs SET nonce = ''")
    mine, nobodys = await put(storage, job.id), await put(storage, "33333333-3333-4333-8333-333333333333")
    clock.later = 25
    await a_round(orphans)
    assert (await there(storage, mine), await there(storage, nobodys)) == ([True] * 3, [False] * 3)


async def test_what_is_not_ours_is_not_touched(orphans: Orphans, storage: LocalStorage, clock: Hours) -> None:
    others = ("backup/1/x", "inputs2/1/x", "inputs/stray")
    for key in others:
        await storage.write(key, once(), 10)
    clock.later = 25
    await a_round(orphans)
    assert await there(storage, others) == [True] * 3


async def test_a_call_looks_at_one_page_and_a_round_at_all(
    orphans: Orphans, storage: LocalStorage, clock: Hours, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", 4)
    made = [await put(storage, f"job-{n}/{'0' * 16}") for n in range(6)]
    clock.later = 25
    await orphans.sweep()
    assert sum([sum(await there(storage, one)) for one in made]) >= 18 - 4
    # 12 inputs are three pages and the empty one after them, 6 outputs two.
    await a_round(orphans, 6)
    assert [await there(storage, one) for one in made] == [[False] * 3] * 6


async def test_a_round_is_followed_by_a_rest(
    orphans: Orphans, storage: LocalStorage, clock: Hours, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock.later = 25
    await a_round(orphans)
    late = await put(storage, f"job/{'0' * 16}")
    clock.later = 25.5
    await a_round(orphans)
    assert await there(storage, late) == [True] * 3
    clock.later = 50
    await a_round(orphans)
    assert await there(storage, late) == [False] * 3


async def test_a_store_that_fails_is_asked_again_at_the_same_place(
    orphans: Orphans, storage: LocalStorage, clock: Hours, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = await put(storage, f"job/{'0' * 16}")
    clock.later = 25

    async def fail(*_: object) -> None:
        raise StorageError("no", transient=True)

    with monkeypatch.context() as broken:
        broken.setattr(storage, "delete_prefix", fail)
        await a_round(orphans, 5)
    assert await there(storage, late) == [True] * 3
    await a_round(orphans)
    assert await there(storage, late) == [False] * 3
