"""Which deployments are to be had: a node of it is there, or one can be rented. Jobs of the others go to these."""

import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass

from deployments.classes import model_of
from serve_app.jobs.conditions import HOPELESS, WaitCode
from serve_app.jobs.outlooks import Outlook
from serve_app.jobs.readiness import ModelHealth

#: Seconds for which a class is left alone after nobody had a machine for it. Once its jobs have gone elsewhere, nothing
#: is wished for it any more, and the launcher does not say that again.
NO_MACHINE_S = 900.0
#: Seconds for which that has to be said first, with breaks no longer: whoever finds a machine sooner may keep its jobs.
NO_MACHINE_FIRST_S = 120.0


@dataclass
class _NoMachine:
    since: float
    last: float


class Presence:
    """Remembers where no machine was to be had."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._none: dict[str, _NoMachine] = {}

    def had(self, healths: Mapping[str, ModelHealth], outlooks: Mapping[str, Outlook], usable: Set[str]) -> set[str]:
        """Those of ``usable`` that are to be had. Where a node of another class of the model is there, a machine that
        is only allowed later, e.g. by a cap, is none."""
        for name, outlook in outlooks.items():
            self._note(name, outlook)
        live = {name for name in usable if healths[name].live}
        there = {model_of(name) for name in live}
        return live | {
            name
            for name in usable & outlooks.keys()
            if not self._none_lately(name) and _rentable(outlooks[name].code, another=model_of(name) in there)
        }

    def _note(self, name: str, outlook: Outlook) -> None:
        if outlook.code != WaitCode.NO_MACHINE:
            return
        now, known = self._clock(), self._none.get(name)
        if known is None or (now - known.last > NO_MACHINE_FIRST_S and not self._none_lately(name)):
            self._none[name] = _NoMachine(now, now)
        else:
            known.last = now

    def _none_lately(self, name: str) -> bool:
        known = self._none.get(name)
        if known is None or known.last - known.since < NO_MACHINE_FIRST_S:
            return False
        return self._clock() - known.last < NO_MACHINE_S


def _rentable(code: str | None, *, another: bool) -> bool:
    return code is None if another else code not in {*HOPELESS, WaitCode.NO_MACHINE}
