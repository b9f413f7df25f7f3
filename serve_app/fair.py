"""Slots that owners share fairly.

Whoever holds slots for long, by slow servers or heavy files, must not be able to hold everybody's. So an owner gets at
most a share of them, what is free goes round between the owners who wait, and within an owner to who came first.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class FairSlots:
    """``total`` slots, at most ``share`` of them to one owner. For one event loop.

    ``async with slots.hold("ann"): …`` waits for a slot and gives it back at the end, also when cancelled.
    """

    def __init__(self, total: int, share: int) -> None:
        self._free = total
        self._share = share
        self._held = Counter[str]()
        #: By owner, whose turn is next first. No empty queues, and nobody in them who could have a slot now.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def hold(self, owner: str) -> AsyncIterator[None]:
        """A slot while the block runs."""
        await self._acquire(owner)
        try:
            yield
        finally:
            self._release(owner)

    async def _acquire(self, owner: str) -> None:
        if self._free and self._held[owner] < self._share:
            self._take(owner)
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._leave(owner, turn)
            else:
                # Given a slot at the same moment.
                self._release(owner)
            raise

    def _take(self, owner: str) -> None:
        self._free -= 1
        self._held[owner] += 1

    def _release(self, owner: str) -> None:
        self._free += 1
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner]
        self._give()

    def _give(self) -> None:
        while self._free:
            owner = next((owner for owner in self._waiting if self._held[owner] < self._share), None)
            if owner is None:
                return
            queue = self._waiting.pop(owner)
            turn = queue.popleft()
            if queue:
                # Behind all others who wait.
                self._waiting[owner] = queue
            if not turn.done():
                self._take(owner)
                turn.set_result(None)

    def _leave(self, owner: str, turn: asyncio.Future[None]) -> None:
        queue = self._waiting.get(owner)
        if queue is not None and turn in queue:
            queue.remove(turn)
            if not queue:
                del self._waiting[owner]
