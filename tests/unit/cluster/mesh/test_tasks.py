"""The owner of tasks, by itself."""

import asyncio
from typing import NoReturn

import pytest
import structlog

from cluster.mesh.tasks import Tasks, unless


class Unforeseen(Exception):
    """Like a bug."""


#: What the message of an exception may quote.
KEY = "0123456789abcdef"


async def fail(after: asyncio.Event | None = None) -> NoReturn:
    if after is not None:
        await after.wait()
    raise Unforeseen(KEY)


async def forever() -> NoReturn:
    await asyncio.Event().wait()
    raise AssertionError


async def turn() -> None:
    """Let everything that is ready run."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_loop_that_fails_or_returns_fails_its_owner() -> None:
    async def returns() -> None:
        pass

    for loop, error in ((fail(), Unforeseen), (returns(), RuntimeError)):
        tasks = Tasks()
        tasks.run_loop(loop)  # type: ignore[arg-type]
        with pytest.raises(error):
            await asyncio.wait_for(tasks.failed, 1)


async def test_loops_that_are_closed_have_not_failed() -> None:
    tasks = Tasks()
    tasks.run_loop(forever())
    await turn()
    await tasks.close()
    assert not tasks.failed.done()


async def test_a_failure_for_one_connection_is_logged_and_ends_that_one() -> None:
    tasks, aborted = Tasks(), []
    with structlog.testing.capture_logs() as logs:
        tasks.serve(fail(), lambda: aborted.append("fails"))
        tasks.serve(forever(), lambda: aborted.append("goes on"))
        tasks.serve(asyncio.sleep(0), lambda: aborted.append("ends"))
        await turn()
        assert aborted == ["fails"]
        await tasks.close()
    assert aborted == ["fails", "goes on"]
    ((event, error, where),) = [(line["event"], line["error"], line["where"]) for line in logs]
    assert (event, error) == ("mesh.unexpected_failure", "Unforeseen")
    assert "test_tasks.py" in where
    assert KEY not in str(logs)
    assert not tasks.failed.done()


@pytest.mark.parametrize("closed", [True, False])
async def test_what_never_began_is_aborted_too(closed: bool) -> None:
    tasks, aborted = Tasks(), []
    if closed:
        await tasks.close()
    task = tasks.serve(forever(), lambda: aborted.append(1))
    task.cancel()
    await turn()
    assert aborted == [1]


async def test_what_has_to_be_finished_outlives_its_caller() -> None:
    tasks, go, done = Tasks(), asyncio.Event(), []

    async def work() -> str:
        await go.wait()
        done.append(1)
        return "result"

    caller = asyncio.create_task(tasks.finish(work()))
    await turn()
    caller.cancel()
    await tasks.close()
    go.set()
    await turn()
    assert done == [1]
    assert await tasks.finish(work()) == "result"


async def test_a_failure_after_the_caller_has_left_is_logged() -> None:
    tasks, go = Tasks(), asyncio.Event()
    with structlog.testing.capture_logs() as logs:
        caller = asyncio.create_task(tasks.finish(fail(go)))
        await turn()
        caller.cancel()
        go.set()
        await turn()
        with pytest.raises(Unforeseen):
            await tasks.finish(fail(go))
    # The caller that is there hears of it; nobody else has to.
    assert [line["event"] for line in logs] == ["mesh.unexpected_failure"]


async def test_unless() -> None:
    event = asyncio.Event()
    assert await unless(event, asyncio.sleep(0, "result")) == "result"
    with pytest.raises(Unforeseen):
        await unless(event, fail())
    asyncio.get_running_loop().call_soon(event.set)
    assert await unless(event, forever()) is None
