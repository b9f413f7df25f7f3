"""A set with a limit: whoever is too many pushes out the oldest."""

from collections import OrderedDict, defaultdict
from typing import Generic, TypeVar

T = TypeVar("T")


class EvictingSet(Generic[T]):
    """At most ``limit`` members, and of one source at most half of that.

    The oldest goes: honest connections wait for a few round trips only, so few of the oldest are honest. Where all
    come through one proxy, all are one source, and half of the limit is what there is.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._all: OrderedDict[T, str] = OrderedDict()
        self._by_source: defaultdict[str, OrderedDict[T, None]] = defaultdict(OrderedDict)

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, one: T) -> bool:
        return one in self._all

    def members(self) -> tuple[T, ...]:
        """Oldest first."""
        return tuple(self._all)

    def add(self, one: T, source: str) -> T | None:
        """Add one; returns whom that has pushed out, None if nobody."""
        self._all[one] = source
        same = self._by_source[source]
        same[one] = None
        if len(same) > self._limit // 2:
            gone = next(iter(same))
        elif len(self._all) > self._limit:
            gone = next(iter(self._all))
        else:
            return None
        self.remove(gone)
        return gone

    def remove(self, one: T) -> None:
        """Take it out, if it is in."""
        source = self._all.pop(one, None)
        if source is not None:
            same = self._by_source[source]
            del same[one]
            if not same:
                del self._by_source[source]
