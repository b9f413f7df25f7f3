"""Who waits at a door, oldest first, and who has to go when there are too many."""

from collections import OrderedDict, defaultdict
from typing import Generic, TypeVar

T = TypeVar("T")


class Crowd(Generic[T]):
    """At most so many, and of one source at most half of them.

    The oldest goes: an honest one waits for a few round trips, so there are few of them among the oldest. Where
    everybody comes through one proxy, sources tell nothing, and half of the places is what there is.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._all: OrderedDict[T, str] = OrderedDict()
        self._by_source: defaultdict[str, OrderedDict[T, None]] = defaultdict(OrderedDict)

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, one: T) -> bool:
        return one in self._all

    def members(self) -> tuple[T, ...]:
        """Everybody, oldest first."""
        return tuple(self._all)

    def add(self, one: T, source: str) -> T | None:
        """Let one more wait. Who has to go for it, and is forgotten here; None while there is room."""
        self._all[one] = source
        same = self._by_source[source]
        same[one] = None
        if len(same) > self._most // 2:
            gone = next(iter(same))
        elif len(self._all) > self._most:
            gone = next(iter(self._all))
        else:
            return None
        self.remove(gone)
        return gone

    def remove(self, one: T) -> None:
        """It doesn't wait any more, if it did."""
        source = self._all.pop(one, None)
        if source is not None:
            same = self._by_source[source]
            del same[one]
            if not same:
                del self._by_source[source]
