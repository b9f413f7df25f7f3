"""Questions to the registry, which may hang: at most so many at a time, and each is waited for for so long only."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from cluster.mesh.tasks import Tasks

T = TypeVar("T")


class Turns:
    """As many as may ask at a time."""

    def __init__(self, tasks: Tasks, count: int, limit_s: float) -> None:
        self._tasks = tasks
        self._free = asyncio.Semaphore(count)
        self._limit_s = limit_s

    async def ask(self, question: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What the registry answers; TimeoutError after ``limit_s``.

        Once asked, a question is not called off, neither then nor when nobody needs the answer any more: a driver may
        wait for a database that hangs, whatever it is told. But its turn lasts until it has ended, so a registry that
        hangs is asked no more questions than there are turns.
        """
        async with asyncio.timeout(self._limit_s):
            await self._free.acquire()
            return await self._tasks.finish(self._in_turn(question))

    async def _in_turn(self, question: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Ask, and give back the turn that has been taken for it."""
        try:
            return await question()
        finally:
            self._free.release()
