"""Answers that many want and one asks for."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")

#: Seconds for which an answer is shown to others: anybody may ask, and as often as they like.
FRESH_S = 1.0


class Shared(Generic[T]):
    """An answer, or the lack of one, that is asked for once a second however many want it.

    Nobody waits for the next one while the last is not two seconds old.
    """

    def __init__(
        self, ask: Callable[[], Awaitable[T]], timeout_s: float | None = None, *, fresh_s: float | None = None
    ) -> None:
        """``timeout_s``: after so long there is none; None: what it asks of is bounded itself. ``fresh_s``: it is asked
        for once in so long, if not in ``FRESH_S``."""
        self._ask = ask
        self._timeout_s = timeout_s
        self._own_fresh_s = fresh_s
        self._asking: asyncio.Task[T] | None = None
        self._last: asyncio.Task[T] | None = None
        #: When the last answer, or the lack of one, came.
        self._since = 0.0

    async def get(self) -> T:
        fresh_s = FRESH_S if self._own_fresh_s is None else self._own_fresh_s
        age = time.monotonic() - self._since
        if self._asking is None or (self._asking.done() and age >= fresh_s):
            self._last, self._asking = self._asking, asyncio.create_task(self._bounded())
            self._asking.add_done_callback(_retrieve)
        if self._asking.done():
            return self._asking.result()
        if self._last is not None and age < 2 * fresh_s:
            return self._last.result()
        # Whoever gives up must not take the answer from the others.
        return await asyncio.shield(self._asking)

    async def _bounded(self) -> T:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._ask()
        finally:
            self._since = time.monotonic()


def _retrieve(asked: "asyncio.Task[T]") -> None:
    """An error that nobody waited for is not to be reported as forgotten."""
    if not asked.cancelled():
        asked.exception()
