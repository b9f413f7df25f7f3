"""Whether the store can be relied on, asked cheaply."""

import asyncio

import pytest

from serve_app.storage import watch
from serve_app.storage.base import StorageError
from serve_app.storage.watch import StorageWatch


class Store:
    """Answers ``check`` as told, and counts."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.hangs = False
        self.checks = 0

    async def check(self) -> None:
        self.checks += 1
        await asyncio.sleep(0)
        if self.hangs:
            await asyncio.Event().wait()
        if self.error:
            raise self.error


@pytest.fixture
def store() -> Store:
    return Store()


async def test_one_answer_serves_everybody_for_a_while(store: Store) -> None:
    watched = StorageWatch(store)
    assert await asyncio.gather(*(watched.trouble() for _ in range(20))) == [None] * 20
    assert store.checks == 1


async def test_a_fresh_answer_is_no_older_than_the_question(store: Store) -> None:
    watched = StorageWatch(store)
    await watched.trouble()
    store.error = StorageError("The disk is full.", transient=True)
    assert await watched.trouble() is None
    assert await watched.trouble(fresh=True) == "The disk is full."
    # And is the newest from then on.
    assert await watched.trouble() == "The disk is full."
    assert store.checks == 2


async def test_a_store_that_is_back_is_seen(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "FRESH_S", 0)
    watched = StorageWatch(store)
    store.error = StorageError("no", transient=False)
    assert await watched.trouble() == "no"
    store.error = None
    assert await watched.trouble() is None


async def test_a_store_that_hangs_refuses(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "CHECK_TIMEOUT_S", 0.05)
    store.hangs = True
    assert "does not answer" in await StorageWatch(store).trouble()
