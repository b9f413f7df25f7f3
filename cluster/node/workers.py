"""Ray's worker processes on this machine, of which one that nobody can give work any more is ended.

A raylet keeps what a head has asked it for beyond that head's end: a worker with this machine's GPU, say, for a replica
that is to start when the GPU is free. Is it free then, the worker is granted to a head that is no more. It waits for
work for ever, and its GPU with it: no replica can start here, and the machine never is idle and given back.
https://github.com/ray-project/ray/issues/66199
"""

import asyncio
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import structlog

log = structlog.get_logger()

#: A worker is ended after so many looks in a row at which it had no work, so many seconds apart. One that was granted
#: to somebody who lives has its work at once; one granted to nobody Ray itself ends after a second, but for a few.
LOOKS, EVERY_S = 10, 3.0
#: The share of a processor by which it has work after all: it imports what it is to be.
_BUSY = 0.05
#: What Ray calls a worker that has no work.
_IDLE = b"ray::IDLE"
_PROC = Path("/proc")
#: Fields of ``/proc/PID/stat`` after the name: https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html
_PARENT, _USER, _SYSTEM, _STARTED = 1, 11, 12, 19
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class _Worker:
    pid: int
    #: Clock ticks since boot: a process id may be somebody else's later.
    started: int


async def end_idle(ray_pid: int, every_s: float = EVERY_S) -> NoReturn:
    """End those below ``ray start``'s process that have no work for :data:`LOOKS` looks."""
    #: The looks so far, and the seconds that it had computed at the last.
    seen: dict[_Worker, tuple[int, float]] = {}
    while True:
        try:
            idle = await asyncio.to_thread(_idle, ray_pid)
            seen = {worker: (_looks(seen.get(worker), cpu_s, every_s), cpu_s) for worker, cpu_s in idle.items()}
            for worker in (worker for worker, (looks, _) in seen.items() if looks >= LOOKS):
                log.warning("node.idle_worker_ended", pid=worker.pid)
                os.kill(worker.pid, signal.SIGKILL)
        except ProcessLookupError:
            # It was faster.
            pass
        except Exception:
            # Whatever it is: without another look, a GPU would be held for ever.
            log.exception("node.idle_workers_not_seen")
        await asyncio.sleep(every_s)


def _looks(before: tuple[int, float] | None, cpu_s: float, every_s: float) -> int:
    """How many there were in a row, with this one."""
    return 1 if before is None or cpu_s - before[1] > _BUSY * every_s else before[0] + 1


def _idle(ray_pid: int) -> Mapping[_Worker, float]:
    """The workers without work, and how many seconds each has computed."""
    parents: dict[int, int] = {}
    found: dict[_Worker, float] = {}
    for folder in _PROC.iterdir():
        if not folder.name.isdecimal():
            continue
        pid = int(folder.name)
        try:
            # The name, in parentheses, may hold anything.
            stat = (folder / "stat").read_bytes().rpartition(b")")[2].split()
            # Ray writes its title over the arguments; what was longer before ends in zeros or spaces.
            title = (folder / "cmdline").read_bytes().rstrip(b"\0 ")
        except OSError:
            # It has ended meanwhile, or is none of ours.
            continue
        parents[pid] = int(stat[_PARENT])
        if title == _IDLE:
            found[_Worker(pid, int(stat[_STARTED]))] = (int(stat[_USER]) + int(stat[_SYSTEM])) / _TICKS
    # Ray's process has a raylet, and that the workers.
    return {worker: cpu_s for worker, cpu_s in found.items() if parents.get(parents[worker.pid]) == ray_pid}
