"""Slots that owners share fairly.

Whoever holds slots for long, by slow servers or heavy files, must not be able to hold everybody's. So an owner gets at
most a share of them, what is free goes to who has used least lately, and within an owner to who came first.
"""

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

#: Use counts half after so many seconds.
_HALF_LIFE_S = 60
#: More seconds of use than this make an owner a heavy one.
_HEAVY_S = 10


class FairSlots:
    """``total`` slots, at most ``share`` of them to one owner. For one event loop.

    Heavy owners together leave ``spare`` of them to the others: somebody whose turns are short finds one free or waits
    for one of his kind.

    ``async with slots.hold("ann"): …`` waits for a slot and gives it back at the end, also when cancelled.
    """

    def __init__(self, total: int, share: int, *, spare: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._free = total
        self._share = share
        self._for_heavy = total - spare
        self._clock = clock
        self._held = Counter[str]()
        #: Slots held by owners who were heavy when they took them.
        self._heavy = 0
        #: Seconds used and when that was true, by owner; the latest last.
        self._used: OrderedDict[str, tuple[float, float]] = OrderedDict()
        #: By owner, who has waited longest first. No empty queues.
        self._waiting: dict[str, deque[asyncio.Future[bool]]] = {}

    @asynccontextmanager
    async def hold(self, owner: str) -> AsyncIterator[None]:
        """A slot while the block runs."""
        heavy = await self._acquire(owner)
        begun = self._clock()
        try:
            yield
        finally:
            self._charge(owner, self._clock() - begun)
            self._release(owner, heavy)

    async def _acquire(self, owner: str) -> bool:
        """Whether it was taken as a heavy owner."""
        if self._may(owner):
            # Then nobody waits who could have it.
            return self._take(owner)
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._leave(owner, turn)
            else:
                # Given a slot at the same moment.
                self._release(owner, turn.result())
            raise

    def _may(self, owner: str) -> bool:
        if not self._free or self._held[owner] >= self._share:
            return False
        return self._usage(owner) <= _HEAVY_S or self._heavy < self._for_heavy

    def _take(self, owner: str) -> bool:
        heavy = self._usage(owner) > _HEAVY_S
        self._free -= 1
        self._held[owner] += 1
        self._heavy += heavy
        return heavy

    def _release(self, owner: str, heavy: bool) -> None:
        self._free += 1
        self._held[owner] -= 1
        self._heavy -= heavy
        if not self._held[owner]:
            del self._held[owner]
        while able := [owner for owner in self._waiting if self._may(owner)]:
            self._give(min(able, key=self._usage))

    def _give(self, owner: str) -> None:
        queue = self._waiting.pop(owner)
        turn = queue.popleft()
        if queue:
            # Behind all others who have used as little.
            self._waiting[owner] = queue
        if not turn.done():
            turn.set_result(self._take(owner))

    def _leave(self, owner: str, turn: asyncio.Future[bool]) -> None:
        queue = self._waiting.get(owner)
        if queue is not None and turn in queue:
            queue.remove(turn)
            if not queue:
                del self._waiting[owner]

    def _usage(self, owner: str) -> float:
        seconds, at = self._used.get(owner, (0.0, 0.0))
        return seconds and seconds * 0.5 ** ((self._clock() - at) / _HALF_LIFE_S)

    def _charge(self, owner: str, seconds: float) -> None:
        now = self._clock()
        self._used[owner] = (self._usage(owner) + seconds, now)
        self._used.move_to_end(owner)
        # What is ten half-lives old is nothing any more.
        while next(iter(self._used.values()))[1] < now - 10 * _HALF_LIFE_S:
            self._used.popitem(last=False)
