"""Who owns the tasks of a hub or an agent: none ends unseen, none is left when its owner ends."""

import asyncio
import traceback
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, TypeVar

import structlog

log = structlog.get_logger()

T = TypeVar("T")


class Tasks:
    """All tasks of one hub or agent, in three kinds, by what it means that one ends."""

    def __init__(self) -> None:
        #: Done, with the exception, once a loop has ended: its owner can't go on.
        self.failed: asyncio.Future[NoReturn] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._finishing: set[asyncio.Task[Any]] = set()
        self._closed = False

    def run_loop(self, loop: Coroutine[Any, Any, NoReturn]) -> None:
        """A loop of the owner's own, without which it is of no use."""

        def done(task: asyncio.Task[NoReturn]) -> None:
            if not task.cancelled() and not self.failed.done():
                self.failed.set_exception(task.exception() or RuntimeError(f"{task.get_name()} has returned"))
                # The owner may be closing, and wait for it no more.
                self.failed.exception()

        self._start(loop, self._tasks).add_done_callback(done)

    def serve(self, work: Coroutine[Any, Any, None], abort: Callable[[], object]) -> asyncio.Task[None]:
        """Work for one connection. Unless it comes to its end, ``abort`` has to end that connection; others go on."""

        def done(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                log_failure(error, task=task.get_name())
                abort()
            elif task.cancelled():
                # It may not even have begun.
                abort()

        task = self._start(work, self._tasks)
        task.add_done_callback(done)
        if self._closed:
            task.cancel()
        return task

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of work that goes on to its end though the caller is cancelled; then a failure of it is logged."""
        task = self._start(work, self._finishing)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_log_late)
            raise

    async def close(self) -> None:
        """Cancel loops and what is done for connections, and wait for them."""
        self._closed = True
        doomed = tuple(self._tasks)
        for task in doomed:
            task.cancel()
        await asyncio.gather(*doomed, return_exceptions=True)

    def abandon(self) -> None:
        """Cancel what :meth:`finish` still waits for, without waiting: it may hang and not heed that."""
        for task in tuple(self._finishing):
            task.cancel()

    def _start(self, work: Coroutine[Any, Any, T], among: set[asyncio.Task[Any]]) -> asyncio.Task[T]:
        task = asyncio.create_task(work, name=getattr(work, "__qualname__", None))
        among.add(task)
        task.add_done_callback(among.discard)
        return task


async def unless(event: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of ``work``; None if the event comes first, and then the work is cancelled."""
    working, waiting = asyncio.create_task(work), asyncio.create_task(event.wait())
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        waiting.cancel()
        await asyncio.gather(working, waiting, return_exceptions=True)


def log_failure(error: BaseException, **facts: object) -> None:
    """Log an exception that nobody expected: its type and where it was raised. Its message may quote a secret."""
    where = "".join(traceback.format_tb(error.__traceback__))
    log.error("mesh.unexpected_failure", error=type(error).__name__, where=where, **facts)


def _log_late(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log_failure(error, task=task.get_name())
