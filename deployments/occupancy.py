"""Who may be on a replica at the same time: any number of jobs, or one that has to be alone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Occupancy:
    """First come, first in: whoever waits to be alone keeps later ones out, so that his turn comes."""

    def __init__(self) -> None:
        self._door = asyncio.Lock()
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()

    @asynccontextmanager
    async def entered(self, *, alone: bool) -> AsyncIterator[None]:
        """Waits until one may come in. Cancelling the wait leaves nothing behind."""
        async with self._door:
            if alone:
                await self._empty.wait()
                # With the door shut until the end.
                yield
                return
            self._inside += 1
            self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()
