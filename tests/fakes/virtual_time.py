"""An event loop whose time passes only while nobody has anything to do, and then at once.

For code that waits by asyncio's own means, and asks nobody outside of this process: hours take milliseconds, and the
same scenario always goes the same way.
"""

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector(selectors.SelectSelector):
    """Instead of waiting it says how long it would have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.waited_s = 0.0

    def select(self, timeout: float | None = None) -> list:
        if timeout is None:
            raise RuntimeError("everybody waits for something that never comes")
        self.waited_s += max(0.0, timeout)
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.waited_s


def run(main: Coroutine[Any, Any, T]) -> T:
    """As ``asyncio.run``."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(main)


class LoopClock:
    """A :class:`cluster.vast.pacing.Clock` of the running loop's time, which begins at some hour of the day."""

    def __init__(self, hour: int = 18) -> None:
        self._begin = datetime(2026, 1, 1, hour, tzinfo=UTC)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def now(self) -> datetime:
        return self._begin + timedelta(seconds=self.monotonic())

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that is a coroutine, in such a loop."""

    @functools.wraps(test)
    def running(*args: Any, **named: Any) -> None:
        run(test(*args, **named))

    return running
