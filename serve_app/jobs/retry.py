"""Whether a failed attempt is followed by another, and when."""

import random

from deployments.failure_code import FailureCode

#: Attempts a job gets when its faults are transient.
MAX_ATTEMPTS = 3
#: A job that fills the memory of two replicas will fill a third.
MAX_OUT_OF_MEMORY = 2


def delay_before_retry(*, faults: int, code: FailureCode, transient: bool, jitter: float | None = None) -> float | None:
    """Seconds to wait before the next attempt, or None when there is none.

    ``faults`` counts the fault at hand. The wait doubles (1 s, 2 s, 4 s …) and is spread by up to ±25 %, so that jobs
    that failed together do not come back together. ``jitter`` in -1..1 replaces the random spread.
    """
    limit = MAX_OUT_OF_MEMORY if code is FailureCode.OUT_OF_MEMORY else MAX_ATTEMPTS
    if not transient or faults >= limit:
        return None
    spread = random.uniform(-1, 1) if jitter is None else jitter  # noqa: S311 - not a secret
    return float(2 ** (faults - 1) * (1 + 0.25 * spread))
