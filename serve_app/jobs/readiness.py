"""Which deployments can work, why others cannot, and how much of each may be handed over.

Serve has no pause between two tries to start a replica. One whose constructor fails is tried three times at once, and
then never again until nothing waits for it; where a replica of the same version has run before, it is tried for ever,
about every other second. On a rented GPU each try is minutes. So when one does not start, its waiting calls are
taken back from Serve, which thereby stops and forgets (``scaling.py``), and after a while one call is let through to
see whether it is better now. Where machines are rented, that call may rent one: then it is a long while.

One whose weights the launcher has not got is closed in the same way: no machine will come for its calls.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from serve_app.jobs.conditions import EVERY_MODEL, HOPELESS, Condition, Conditions, WaitCode
from serve_app.jobs.outlooks import Outlook

log = structlog.get_logger()

#: Seconds until a deployment that does not start is tried again; it doubles.
FIRST_TRY_S = 60.0
LAST_TRY_S = 900.0
#: The same where a try may cost the start of a machine. A new deployment begins anew: all of this is in memory.
RENTED_TRY_S = 3600.0
#: A condition that still holds is written again so often, well within ``conditions.BELIEVED_S``.
REPEAT_S = 20.0


@dataclass(frozen=True)
class ModelHealth:
    """A deployment as Serve tells it."""

    #: Whether a replica runs.
    working: bool
    #: What keeps replicas from starting.
    trouble: Condition | None
    #: Whether a node is there that could take a replica, be it full.
    live: bool = True


@dataclass
class _Failing:
    reason: Condition
    again_at: float
    tries: int = 1
    #: One call is let through.
    trying: bool = False


class Readiness:
    """Remembers what Serve forgets, and writes down what clients should read."""

    def __init__(self, conditions: Conditions, clock: Callable[[], float] = time.monotonic) -> None:
        self._conditions = conditions
        self._clock = clock
        self._failing: dict[str, _Failing] = {}
        #: Deployments for which no machine will be rented.
        self._hopeless: set[str] = set()
        #: What is written down, and when it was.
        self._written: dict[str, tuple[Condition, float]] = {}

    def window(self, name: str, wanted: int) -> int:
        """How many tasks of the deployment may be in flight."""
        failing = self._failing.get(name)
        if name in self._hopeless:
            return 0
        if failing is None:
            return wanted
        return min(wanted, 1) if failing.trying else 0

    def open(self, name: str) -> bool:
        """Whether anything may be handed over."""
        return self.window(name, 1) > 0

    async def look(
        self, healths: Mapping[str, ModelHealth], storage_trouble: str | None, outlooks: Mapping[str, Outlook]
    ) -> set[str]:
        """Take in how things are. Returns those that have just turned out not to start."""
        closed = set()
        for name, health in healths.items():
            outlook = outlooks.get(name)
            if self._fails_now(name, health, rented=outlook is not None):
                closed.add(name)
            if health.working or outlook is None or outlook.code not in HOPELESS:
                self._hopeless.discard(name)
            elif name not in self._hopeless:
                self._hopeless.add(name)
                closed.add(name)
            failing = self._failing.get(name)
            await self._write(name, failing.reason if failing else None if health.working else health.trouble)
        refusal = storage_trouble and Condition(
            WaitCode.STORAGE_UNAVAILABLE, f"The object store refuses: {storage_trouble}"
        )
        await self._write(EVERY_MODEL, refusal or None)
        return closed

    def _fails_now(self, name: str, health: ModelHealth, *, rented: bool) -> bool:
        failing = self._failing.get(name)
        trouble = health.trouble
        if health.working:
            self._failing.pop(name, None)
        elif trouble is not None and trouble.code == WaitCode.MODEL_UNAVAILABLE:
            if failing is None:
                self._failing[name] = _Failing(trouble, self._clock() + (RENTED_TRY_S if rented else FIRST_TRY_S))
                return True
            failing.reason = trouble
            if failing.trying:
                failing.trying = False
                pause_s = RENTED_TRY_S if rented else min(FIRST_TRY_S * 2**failing.tries, LAST_TRY_S)
                failing.again_at = self._clock() + pause_s
                failing.tries += 1
                return True
        elif failing is not None and self._clock() >= failing.again_at:
            # Only now that Serve has forgotten: before, it would not try.
            failing.trying = True
        return False

    async def _write(self, subject: str, condition: Condition | None) -> None:
        known, written_at = self._written.get(subject, (None, 0.0))
        if condition is None:
            if known is not None:
                await self._conditions.lift(subject)
                del self._written[subject]
                log.info("condition_lifted", subject=subject, code=known.code)
            return
        if condition == known and self._clock() - written_at < REPEAT_S:
            return
        await self._conditions.note(subject, condition)
        self._written[subject] = (condition, self._clock())
        if condition != known:
            log.warning("condition", subject=subject, code=condition.code, reason=condition.message)
