"""When the next request may go out. Vast wants an interval between requests to each endpoint, by key and address.

What it wants is in its documentation (seconds): list and show 1 to 2, destroy 3, create 4.5 and 12 after one that came
too early. For search, the account and charges it gives none.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import Protocol


class Endpoint(StrEnum):
    """What Vast counts apart."""

    SEARCH = "search"
    RENT = "rent"
    LIST = "list"
    SHOW = "show"
    DESTROY = "destroy"
    ACCOUNT = "account"
    CHARGES = "charges"


#: Seconds from the end of a request to the next one of its kind.
INTERVALS_S: Mapping[Endpoint, float] = {
    Endpoint.SEARCH: 2.0,
    Endpoint.RENT: 5.0,
    Endpoint.LIST: 2.0,
    Endpoint.SHOW: 2.0,
    Endpoint.DESTROY: 3.2,
    Endpoint.ACCOUNT: 2.0,
    Endpoint.CHARGES: 2.0,
}


class Clock(Protocol):
    """Time, so that tests need not wait for it."""

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""
        ...

    def now(self) -> datetime:
        """The time of day, in UTC."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The real one."""

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def now(self) -> datetime:
        return datetime.now(UTC)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Pace:
    """Requests to an endpoint go one after another, in the order in which they were asked for."""

    def __init__(self, clock: Clock, intervals_s: Mapping[Endpoint, float] = INTERVALS_S) -> None:
        self._clock = clock
        self._intervals_s = intervals_s
        self._turns = {endpoint: asyncio.Lock() for endpoint in Endpoint}
        #: By the clock.
        self._not_before: dict[Endpoint, float] = {}

    @asynccontextmanager
    async def turn(self, endpoint: Endpoint) -> AsyncIterator[None]:
        """Hold it while the request is under way.

        The interval counts from the answer: what Vast sees are arrivals, and a slow request followed by a fast one
        arrives closer to it than it was sent.
        """
        async with self._turns[endpoint]:
            # Somebody may have asked for a pause meanwhile.
            while (wait := self._not_before.get(endpoint, 0.0) - self._clock.monotonic()) > 0:
                await self._clock.sleep(wait)
            try:
                yield
            finally:
                self.pause(endpoint, self._intervals_s[endpoint])

    def pause(self, endpoint: Endpoint, seconds: float) -> None:
        """No request to it for so long."""
        until = self._clock.monotonic() + seconds
        self._not_before[endpoint] = max(until, self._not_before.get(endpoint, until))
