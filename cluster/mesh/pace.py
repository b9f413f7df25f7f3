"""How often one may say something."""

from collections.abc import Callable


class Pace:
    """For each who: so many at once, and over time one in ``every_s`` seconds."""

    def __init__(self, burst: int, every_s: float, clock: Callable[[], float]) -> None:
        self._slack_s = burst * every_s
        self._every_s = every_s
        self._clock = clock
        #: By who, when all that it has said would have been said at the even pace. Slots: they are few.
        self._paid_until: dict[int, float] = {}

    def allows(self, who: int) -> bool:
        """Whether it may now; then this one counts."""
        now = self._clock()
        until = max(self._paid_until.get(who, now), now) + self._every_s
        if until - now > self._slack_s:
            return False
        self._paid_until[who] = until
        return True
