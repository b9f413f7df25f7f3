"""Who watches which job, over a source of notifications and a table that are the test's."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.jobs import feed as feed_module
from serve_app.jobs.feed import Feed, FeedEnded, Shown, Watch


class Database:
    """Jobs by id, and one connection that listens."""

    def __init__(self) -> None:
        self.jobs: dict[str, Shown] = {}
        self.looked: Counter[str] = Counter()
        self.looks = 0
        #: What the next looks end with.
        self.trouble: list[Exception] = []
        self.payloads: asyncio.Queue[str | Exception] = asyncio.Queue()
        #: Looks wait for it.
        self.open = asyncio.Event()
        self.open.set()
        self.feed = Feed(self.listen)
        self.feed.show(self.look)

    async def listen(self) -> AsyncGenerator[str, None]:
        yield ""
        while True:
            payload = await self.payloads.get()
            if isinstance(payload, Exception):
                raise payload
            yield payload

    async def look(self, ids: Sequence[str]) -> Mapping[str, Shown]:
        self.looks += 1
        self.looked.update(ids)
        found = {job_id: self.jobs[job_id] for job_id in ids if job_id in self.jobs}
        await self.open.wait()
        if self.trouble:
            raise self.trouble.pop(0)
        return found

    def put(self, job_id: str, version: int, *, told: bool = True, **changes: Any) -> None:
        values: dict[str, Any] = {"key_id": "", "body": f"{job_id} {version}", "ended": False, "line": None}
        self.jobs[job_id] = Shown(version=version, **(values | changes))
        if told:
            self.payloads.put_nowait(f"{job_id} {version}")


async def version(watch: Watch) -> int | None:
    async with asyncio.timeout(10):
        shown = await watch.next()
    return None if shown is None else shown.version


async def silent(watch: Watch) -> bool:
    """Whether nothing comes, once all that can happen by itself has."""
    waiting = asyncio.ensure_future(watch.next())
    for _ in range(50):
        await asyncio.sleep(0)
    ends = not waiting.done()
    waiting.cancel()
    return ends


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "AGAIN_S", 0.0)
    monkeypatch.setattr(feed_module, "PLACE_S", 0.0)


async def test_each_change_is_looked_at_once_for_all_who_watch() -> None:
    database = Database()
    database.put("a", 1, told=False)
    with database.feed.watch("a") as one, database.feed.watch("a") as other:
        assert (await version(one), await version(other)) == (1, 1)
        assert await silent(one)
        database.looked.clear()
        database.put("a", 2)
        assert (await version(one), await version(other)) == (2, 2)
        assert database.looked == {"a": 1}
    await database.feed.aclose()


async def test_what_nobody_watches_is_not_looked_at() -> None:
    database = Database()
    database.put("a", 1, told=False)
    with database.feed.watch("a") as watch:
        await version(watch)
    database.put("a", 2)
    database.put("b", 1)
    database.put("c", 1, told=False)
    with database.feed.watch("c") as watch:
        await version(watch)
        assert await silent(watch)
    assert database.looked.keys() == {"a", "c"}
    assert database.jobs["a"].version == 2
    await database.feed.aclose()


async def test_who_is_slow_finds_the_latest() -> None:
    database = Database()
    database.put("a", 1, told=False)
    with database.feed.watch("a") as quick, database.feed.watch("a") as slow:
        for number in range(1, 50):
            database.put("a", number)
            assert await version(quick) == number
        assert await version(slow) == 49
        assert await silent(slow)
    await database.feed.aclose()


async def test_changes_that_come_together_are_looked_at_together() -> None:
    database = Database()
    names = [f"{number}" for number in range(30)]
    for name in names:
        database.put(name, 1, told=False)
    with ExitStack() as watching:
        watches = [watching.enter_context(database.feed.watch(name)) for name in names]
        for watch in watches:
            await version(watch)
        assert await silent(watches[0])
        database.looks = 0
        for name in names:
            database.put(name, 2)
            database.put(name, 3)
        assert [await version(watch) for watch in watches] == [3] * 30
        assert database.looks <= 2
    await database.feed.aclose()


async def test_a_change_during_a_look_is_looked_at_again() -> None:
    database = Database()
    database.put("a", 1, told=False)
    with database.feed.watch("a") as watch:
        await version(watch)
        assert await silent(watch)
        database.open.clear()
        database.put("a", 2)
        assert await silent(watch)
        # The look has seen version 2 and not answered yet.
        database.put("a", 3)
        assert await silent(watch)
        database.open.set()
        while await version(watch) != 3:
            pass
    await database.feed.aclose()


async def test_nobody_is_shown_less_than_he_has_seen() -> None:
    """Version 2 was there before he came; that was not heard yet, nor what comes after."""
    database = Database()
    database.put("a", 1, told=False)
    with database.feed.watch("a") as early:
        assert await version(early) == 1
        assert await silent(early)
        database.open.clear()
        database.payloads.put_nowait("a 9")
        assert await silent(early)
        # The look that goes on saw version 1.
        database.put("a", 2, told=False)
        with database.feed.watch("a") as late:
            database.open.set()
            assert await version(late) == 2
    await database.feed.aclose()


async def test_a_lost_connection_loses_nothing() -> None:
    database = Database()
    database.put("a", 1, told=False)
    with database.feed.watch("a") as watch:
        await version(watch)
        assert await silent(watch)
        database.put("a", 2, told=False)
        assert await silent(watch)
        database.payloads.put_nowait(psycopg.OperationalError("terminated"))
        assert await version(watch) == 2
    await database.feed.aclose()


async def test_a_job_that_goes_is_told_once() -> None:
    database = Database()
    database.put("a", 1, told=False)
    with database.feed.watch("a") as watch:
        await version(watch)
        del database.jobs["a"]
        database.payloads.put_nowait("a 2")
        assert await version(watch) is None
        assert await silent(watch)
    await database.feed.aclose()


async def test_a_line_that_moves_is_looked_at_by_those_who_wait_in_it() -> None:
    database = Database()
    database.put("waits", 1, told=False, line="ltx2")
    database.put("elsewhere", 1, told=False, line="wav2lip")
    database.put("runs", 1, told=False)
    feed = database.feed
    with feed.watch("waits") as waits, feed.watch("elsewhere") as elsewhere, feed.watch("runs") as runs:
        for watch in (waits, elsewhere, runs):
            await version(watch)
        assert await silent(waits)
        database.looked.clear()
        database.put("waits", 1, told=False, line="ltx2", body="one nearer")
        database.payloads.put_nowait("unwatched 7 ltx2")
        async with asyncio.timeout(10):
            shown = await waits.next()
        assert shown is not None
        assert shown.body == "one nearer"
        # It moved, and this one's place is the same.
        database.payloads.put_nowait("unwatched 8 ltx2")
        assert await silent(waits)
    assert database.looked == {"waits": 2}
    await database.feed.aclose()


async def test_a_place_is_not_looked_at_more_often_than_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "PLACE_S", 3600.0)
    database = Database()
    database.put("a", 1, told=False, line="ltx2")
    with database.feed.watch("a") as watch:
        await version(watch)
        assert await silent(watch)
        database.looked.clear()
        for number in range(100):
            database.payloads.put_nowait(f"b {number} ltx2")
        assert await silent(watch)
        assert not database.looked
        # A change of its own is.
        database.put("a", 2, line="ltx2")
        assert await version(watch) == 2
    await database.feed.aclose()


@pytest.mark.parametrize("trouble", [TimeoutError(), ConnectionError(), OSError(), psycopg.OperationalError("gone")])
async def test_a_database_that_is_away_is_waited_for(trouble: Exception) -> None:
    database = Database()
    database.put("a", 1, told=False)
    database.trouble = [trouble] * 3
    with database.feed.watch("a") as watch:
        assert await version(watch) == 1
    await database.feed.aclose()


async def test_one_that_cannot_be_shown_stands_in_nobodys_way() -> None:
    database = Database()
    database.put("good", 1, told=False)

    async def look(ids: Sequence[str]) -> Mapping[str, Shown]:
        if "bad" in ids:
            raise ValueError("a row of another version")
        return await database.look(ids)

    database.feed.show(look)
    with database.feed.watch("bad") as bad, database.feed.watch("good") as good:
        assert await version(good) == 1
        with pytest.raises(FeedEnded):
            await bad.next()
    await database.feed.aclose()


async def test_all_who_watch_are_told_that_it_ends() -> None:
    database = Database()
    database.put("a", 1, told=False)
    with database.feed.watch("a") as watch, database.feed.watch("a") as other:
        await version(watch)
        waiting = asyncio.ensure_future(watch.next())
        await asyncio.sleep(0)
        await database.feed.aclose()
        with pytest.raises(FeedEnded):
            await waiting
        await version(other)
        with pytest.raises(FeedEnded):
            await other.next()
    with pytest.raises(FeedEnded), database.feed.watch("a"):
        pass


@pytest.mark.parametrize("payload", ["x", "a", "a b", "a -1", "a ² ltx2", " ", "a  1"])
async def test_what_is_no_payload_is_none(payload: str) -> None:
    database = Database()
    database.put("a", 1, told=False)
    with database.feed.watch("a") as watch:
        await version(watch)
        database.payloads.put_nowait(payload)
        database.put("a", 2)
        assert await version(watch) == 2
    await database.feed.aclose()


ids = st.sampled_from("abc")
steps = st.lists(
    st.one_of(
        st.tuples(st.just("change"), ids),
        st.tuples(st.just("watch"), ids),
        st.tuples(st.just("leave"), ids),
        st.tuples(st.just("break"), st.just("")),
        st.tuples(st.just("fail"), st.just("")),
        st.tuples(st.just("rest"), st.just("")),
    ),
    max_size=40,
)


@settings(max_examples=60)
@given(steps)
def test_whatever_happens_all_see_the_last_and_never_an_older_one(
    script: list[tuple[str, str]],
) -> None:
    asyncio.run(_played(script))


async def _played(script: list[tuple[str, str]]) -> None:
    database = Database()
    for name in "abc":
        database.put(name, 1, told=False)
    watching: dict[str, list[tuple[Any, asyncio.Task[None], list[int]]]] = {name: [] for name in "abc"}

    async def follow(watch: Watch, seen: list[int]) -> None:
        while (shown := await watch.next()) is not None:
            seen.append(shown.version)

    for step, name in script:
        if step == "change":
            database.put(name, database.jobs[name].version + 1)
        elif step == "watch":
            opened = database.feed.watch(name)
            seen = [database.jobs[name].version]
            watching[name].append((opened, asyncio.ensure_future(follow(opened.__enter__(), seen)), seen))
        elif step == "leave" and watching[name]:
            opened, following, _ = watching[name].pop()
            following.cancel()
            await asyncio.wait({following})
            opened.__exit__(None, None, None)
        elif step == "break":
            database.payloads.put_nowait(psycopg.OperationalError("terminated"))
        elif step == "fail":
            database.trouble.append(TimeoutError())
        elif step == "rest":
            await asyncio.sleep(0)
    for _ in range(300):
        await asyncio.sleep(0)
    for name, watches in watching.items():
        for opened, following, seen in watches:
            assert seen == sorted(seen)
            assert seen[-1] == database.jobs[name].version
            following.cancel()
            await asyncio.wait({following})
            opened.__exit__(None, None, None)
    assert not database.feed._watched
    await database.feed.aclose()
