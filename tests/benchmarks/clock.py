"""Seconds that passed and seconds that processors worked, in this process and in the sandbox's."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from deployments.sandbox import process as sandbox


@dataclass
class Clock:
    """Seconds."""

    wall: float = 0.0
    #: Of processors, in this process: all threads.
    own: float = 0.0
    #: Of processors, in sandboxed programs that ended meanwhile, ffmpeg first of all.
    programs: float = 0.0

    @property
    def cpu(self) -> float:
        return self.own + self.programs


@contextmanager
def measured(into: Clock) -> Iterator[None]:
    """Add what the body took. CPU-seconds can be trusted on a busy machine, wall times only on a quiet one."""
    wall, own, programs = time.perf_counter(), time.process_time(), _programs()
    yield
    into.wall += time.perf_counter() - wall
    into.own += time.process_time() - own
    into.programs += _programs() - programs


#: What the sandbox said about programs that ended there: they are not children of this process.
_told: dict[int, tuple[bytes | None, sandbox.Ended]] = {}
_plain = sandbox._ended


def _noted(told: bytes | None) -> sandbox.Ended:
    ended = _plain(told)
    # The same answer is read more than once.
    _told[id(told)] = told, ended
    return ended


sandbox._ended = _noted


def _programs() -> float:
    return sum(ended.cpu_s for _, ended in _told.values())
