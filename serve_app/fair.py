"""Slots that keys and their users share fairly.

Whoever holds slots for long, by slow servers or heavy files, must not be able to hold everybody's. An owner is a user of
a key, ``key/user``. He gets at most a share of the slots; and since a key may call its users what it likes, and as many
as it likes, a key holds at most three times as many as it leaves free: three quarters of what the others have left it.
So whatever some keys do there are slots for the next one, until there are as few slots as keys; a key that is alone
here has them all, or, where that can't be known (intake and webhooks, which are claimed in the database by the same
rule), three quarters. What is free goes to the key that has used least lately, then to its user who has, and within an
owner to who came first.
"""

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

#: Use counts half after so many seconds.
_HALF_LIFE_S = 60
#: What is so many half-lives old is nothing any more.
_FORGOTTEN = 10
#: More seconds of use than this make an owner a heavy one.
_HEAVY_S = 10


def key_of(owner: str) -> str:
    """The key of ``key/user``. An owner without a slash is a key by itself."""
    return owner.partition("/")[0]


class FairSlots:
    """``total`` slots, at most ``share`` of them to one owner. For one event loop.

    Heavy owners together leave ``spare`` of them to the others: somebody whose turns are short finds one free or waits
    for one of his kind. A key counts as alone while no other has been here for ten minutes.

    ``async with slots.hold("key_1/ann"): …`` waits for a slot and gives it back at the end, also when cancelled.
    """

    def __init__(self, total: int, share: int, *, spare: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._free = total
        self._share = share
        self._for_heavy = total - spare
        self._clock = clock
        self._held = Counter[str]()
        self._held_by_key = Counter[str]()
        #: Slots held by owners who were heavy when they took them.
        self._heavy = 0
        self._used = _Use()
        self._used_by_key = _Use()
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
            now = self._clock()
            self._used.add(owner, now - begun, now)
            self._used_by_key.add(key_of(owner), now - begun, now)
            self._release(owner, heavy)

    async def _acquire(self, owner: str) -> bool:
        """Whether it was taken as a heavy owner."""
        # From now on the others are not alone.
        self._used_by_key.add(key_of(owner), 0, self._clock())
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
        if not self._free or self._held[owner] >= self._share or not self._key_may(key_of(owner)):
            return False
        return not self._is_heavy(owner) or self._heavy < self._for_heavy

    def _key_may(self, key: str) -> bool:
        held = self._held_by_key[key]
        return not held or held + 1 <= 3 * (self._free - 1) or not self._used_by_key.by_others(key)

    def _is_heavy(self, owner: str) -> bool:
        return self._used.lately(owner, self._clock()) > _HEAVY_S

    def _take(self, owner: str) -> bool:
        heavy = self._is_heavy(owner)
        self._free -= 1
        self._held[owner] += 1
        self._held_by_key[key_of(owner)] += 1
        self._heavy += heavy
        return heavy

    def _release(self, owner: str, heavy: bool) -> None:
        self._free += 1
        self._heavy -= heavy
        for held, who in ((self._held, owner), (self._held_by_key, key_of(owner))):
            held[who] -= 1
            if not held[who]:
                del held[who]
        while able := [owner for owner in self._waiting if self._may(owner)]:
            self._give(self._next(able))

    def _next(self, owners: Sequence[str]) -> str:
        now = self._clock()
        return min(owners, key=lambda it: (self._used_by_key.lately(key_of(it), now), self._used.lately(it, now)))

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


class _Use:
    """How much of the slots each has used lately."""

    def __init__(self) -> None:
        #: Seconds used and when that was true; the latest last.
        self._used: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def lately(self, who: str, now: float) -> float:
        """Seconds, the older the less."""
        seconds, at = self._used.get(who, (0.0, 0.0))
        return seconds and seconds * 0.5 ** ((now - at) / _HALF_LIFE_S)

    def add(self, who: str, seconds: float, now: float) -> None:
        self._used[who] = (self.lately(who, now) + seconds, now)
        self._used.move_to_end(who)
        while next(iter(self._used.values()))[1] < now - _FORGOTTEN * _HALF_LIFE_S:
            self._used.popitem(last=False)

    def by_others(self, who: str) -> bool:
        """Whether anybody else has been here lately."""
        return len(self._used) > (who in self._used)
