"""How far a node is, as it says it to its head: one line of JSON, from the bootstrap's first seconds on."""

import json
import time
from collections.abc import Callable
from typing import Any

from cluster.bootstrap.traffic import Traffic, traffic
from cluster.mesh.wire import MAX_TEXT_BYTES


class Progress:
    """One process's. Times are in seconds, amounts in bytes. Written by one thread, read by any."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, measured: Callable[[], Traffic] = traffic) -> None:
        self._clock = clock
        self._measured = measured
        self._state = self._phase = self._fault = ""
        #: By phase, without the one that goes on: its seconds and what came in during it.
        self._phases: dict[str, tuple[float, int]] = {}
        self._began, self._down = clock(), 0
        #: Of what is being fetched: when it began, how much there was then, how much there is, how much in all.
        self._fetching: tuple[float, int, int, int] | None = None

    def begin(self, state: str, phase: str = "") -> None:
        """From now on it is in this state. ``phase`` is what its time is noted under, if that is said more exactly."""
        self._phases = self._so_far()
        self._state, self._phase = state, phase or state
        self._began, self._down = self._clock(), self._measured().down
        self._fetching = None

    def measure(self, done: int, total: int) -> None:
        """So much of what this phase fetches is here."""
        since, first = self._fetching[:2] if self._fetching and self._fetching[3] == total else (self._clock(), done)
        self._fetching = (since, first, done, total)

    def fail(self, fault: str) -> None:
        """It can't go on; no secret in it."""
        self._fault = " ".join(fault.split())

    def text(self) -> str:
        """At most 1024 bytes."""
        now = self._measured()
        report: dict[str, Any] = {
            "state": self._state,
            "down": now.down,
            "up": now.up,
            "left_s": self._left_s(),
            "fault": self._fault,
            "phases": {name: {"s": round(s, 1), "bytes": size} for name, (s, size) in self._so_far().items()},
        }
        while len(text := json.dumps(report, separators=(",", ":"))) > MAX_TEXT_BYTES:
            report["fault"] = report["fault"][:-50]
        return text

    def _so_far(self) -> dict[str, tuple[float, int]]:
        if not self._phase:
            return {}
        seconds, size = self._phases.get(self._phase, (0.0, 0))
        more = (seconds + self._clock() - self._began, size + self._measured().down - self._down)
        return {**self._phases, self._phase: more}

    def _left_s(self) -> float | None:
        """At the rate of this phase; None before there is one."""
        if self._fetching is None:
            return None
        since, first, done, total = self._fetching
        if done >= total:
            return 0.0
        if done <= first:
            return None
        return round((total - done) * (self._clock() - since) / (done - first), 1)
