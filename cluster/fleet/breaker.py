"""A node type whose nodes fail one after another is left alone for a while, each time for longer."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from cluster.fleet.limits import Limits


@dataclass(frozen=True)
class Breaker:
    """Of one node type."""

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
