"""What stands in the way of renting for a node type, or for all of them, whatever slots there are.

A *gate* is closed by whoever knows that a node of the type could not work, or by such a node itself. A *pause* is what
an answer of the provider's asks for. A type whose nodes fail one after another trips its *breaker*. And one for which
a bid has failed is rented on demand for a while.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from cluster.fleet.limits import Limits
from cluster.fleet.waiting import Reason, Wait

#: For so long, machines that have closed a gate are tried after all others: one that lies closes it once.
_DOUBT = timedelta(days=1)


@dataclass(frozen=True)
class Breaker:
    """A node type whose nodes fail one after another is left alone for a while, each time for longer."""

    #: In a row, since one of its nodes could work.
    failures: int = 0
    closed_until: datetime | None = None

    def failed(self, at: datetime, limits: Limits) -> "Breaker":
        if self.closed_until is not None and at < self.closed_until:
            # Begun before the pause: that it fails as well is no news.
            return self
        failures = self.failures + 1
        further = failures - limits.failures
        if further < 0:
            return Breaker(failures, self.closed_until)
        pause_s = min(limits.pause_s * 2.0 ** min(further, 30), limits.longest_pause_s)
        return Breaker(failures, at + timedelta(seconds=pause_s))

    def careful(self, limits: Limits) -> bool:
        """One at a time: it has paused, and nobody knows yet whether that has helped."""
        return self.failures >= limits.failures

    def closed(self, now: datetime) -> Wait | None:
        if self.closed_until is None or self.closed_until <= now:
            return None
        return Wait(Reason.FAILURES, f"{self.failures} in a row", self.closed_until)


class Gates:
    """Gates and pauses, in memory: after a restart whoever finds out finds out again."""

    def __init__(self) -> None:
        self._closed: dict[str, Wait] = {}
        #: The same, by nodes; each opens by itself.
        self._reported: dict[str, Wait] = {}
        #: The machines of these nodes, and until when.
        self._doubted: dict[str, datetime] = {}
        self._pauses: dict[str, Wait] = {}
        self._pause: Wait | None = None
        #: Until when nothing is bid for.
        self._on_demand: dict[str, datetime] = {}

    def close(self, node_type: str, wait: Wait) -> None:
        self._closed[node_type] = wait

    def open(self, node_type: str) -> bool:
        """And the one that a node has closed with it. If there was none, that stays: the node may have seen more."""
        if self._closed.pop(node_type, None) is None:
            return False
        self._reported.pop(node_type, None)
        return True

    def report(self, node_type: str, wait: Wait, host: str, now: datetime) -> None:
        """A node on that machine says why none of its type can work. It may be so, and no machine is to blame."""
        self._reported[node_type] = wait
        self._doubted = {each: until for each, until in self._doubted.items() if until > now}
        self._doubted[host] = now + _DOUBT

    def doubted(self, now: datetime) -> frozenset[str]:
        """Machines that are to be tried last."""
        return frozenset(host for host, until in self._doubted.items() if until > now)

    def pause(self, wait: Wait, node_type: str | None = None) -> None:
        """For a while; for all types if none is named."""
        if node_type is None:
            self._pause = wait
        else:
            self._pauses[node_type] = wait

    def on_demand(self, node_type: str, until: datetime) -> None:
        """Bids have failed: none is made until then."""
        self._on_demand[node_type] = until

    def bids(self, node_type: str, now: datetime) -> bool:
        """Whether they may be made."""
        until = self._on_demand.get(node_type)
        return until is None or until <= now

    def closed(self, now: datetime) -> Mapping[str, Wait]:
        """The gates, by type."""
        return {**{name: wait for name, wait in self._reported.items() if _holds(wait, now)}, **self._closed}

    def paused(self, node_type: str, now: datetime) -> Wait | None:
        found = (self._pause, self._pauses.get(node_type))
        return next((wait for wait in found if wait is not None and _holds(wait, now)), None)


def _holds(wait: Wait, now: datetime) -> bool:
    return wait.until is not None and wait.until > now
