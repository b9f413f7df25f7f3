"""How fast a key may ask: a bucket of tokens for each, in this process.

Per API process and not in the database: a request must not cost a write. Two replicas of the API allow twice as much.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

#: Seconds in which an empty bucket is full again.
WINDOW_S = 60
#: Who has waited as long as he was told must not be refused for a digit behind the point.
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What a key has left after a request."""

    #: Whether that request may pass.
    allowed: bool
    #: Requests in a window.
    limit: int
    #: Requests that may follow at once.
    remaining: int
    #: Whole seconds until all of them may again.
    full_s: int
    #: Whole seconds until the next one may; 0: now.
    wait_s: int

    @property
    def headers(self) -> Mapping[str, str]:
        """As draft-ietf-httpapi-ratelimit-headers-11 has them; for a refusal, ``Retry-After`` too."""
        told = {
            "ratelimit-policy": f'"default";q={self.limit};w={WINDOW_S}',
            "ratelimit": f'"default";r={self.remaining};t={self.full_s}',
        }
        return told if self.allowed else {**told, "retry-after": str(self.wait_s)}


@dataclass
class _Bucket:
    tokens: float
    #: When it had them.
    at: float


class Rates:
    """For one event loop. A key that has asked for nothing in a while costs nothing."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: By key; the one used last comes last.
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, key_id: str, per_minute: int) -> Standing:
        """Count one request. One that is refused takes nothing."""
        now, per_s = self._clock(), per_minute / WINDOW_S
        bucket = self._buckets.setdefault(key_id, _Bucket(per_minute, now))
        bucket.tokens = min(per_minute, bucket.tokens + (now - bucket.at) * per_s)
        bucket.at = now
        self._buckets.move_to_end(key_id)
        self._forget(now)
        allowed = bucket.tokens >= 1 - _ROUNDING
        if allowed:
            bucket.tokens = max(0.0, bucket.tokens - 1)
        return Standing(
            allowed=allowed,
            limit=per_minute,
            remaining=int(bucket.tokens),
            full_s=math.ceil((per_minute - bucket.tokens) / per_s),
            # Told in whole seconds: after them, one is there.
            wait_s=math.ceil(max(0.0, 1 - bucket.tokens) / per_s),
        )

    def _forget(self, now: float) -> None:
        """A bucket that is full again is like none."""
        while next(iter(self._buckets.values())).at <= now - WINDOW_S:
            self._buckets.popitem(last=False)
