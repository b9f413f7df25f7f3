"""Time that passes when somebody sleeps, and when a test says so."""

import asyncio
from datetime import UTC, datetime, timedelta


class VirtualClock:
    """A :class:`cluster.vast.pacing.Clock`. Nobody waits: the first to sleep moves it on."""

    def __init__(self) -> None:
        self.seconds = 0.0
        #: Every sleep, in order.
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return datetime(2026, 1, 1, 18, tzinfo=UTC) + timedelta(seconds=self.seconds)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        until = self.seconds + seconds
        # Others who begin to sleep now sleep beside this one, and not after it.
        await asyncio.sleep(0)
        self.seconds = max(self.seconds, until)
