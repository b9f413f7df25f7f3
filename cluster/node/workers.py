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
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import structlog

log = structlog.get_logger()

#: Seconds without work after which a worker is ended. One that has been granted to somebody who lives works within
#: milliseconds; one that is granted to nobody Ray itself ends after a second, but for a few.
IDLE_S = 30.0
#: What Ray calls a worker that has no work.
_IDLE = b"ray::IDLE"
_PROC = Path("/proc")
#: Fields of ``/proc/PID/stat`` after the name: https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html
_PARENT, _STARTED = 1, 19


async def end_idle(ray_pid: int, idle_s: float = IDLE_S) -> NoReturn:
    """End those below ``ray start``'s process that have been without work at each of our looks for ``idle_s``."""
    now = asyncio.get_running_loop().time
    #: Process id and start, since then a process id may be somebody else's; when it was first seen without work.
    since: dict[tuple[int, int], float] = {}
    while True:
        idle = await asyncio.to_thread(_idle, ray_pid)
        since = {worker: since.get(worker, now()) for worker in idle.items()}
        for pid, _ in (worker for worker, begun in since.items() if now() - begun >= idle_s):
            log.warning("node.idle_worker_ended", pid=pid, idle_s=idle_s)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(idle_s / 10)


def _idle(ray_pid: int) -> Mapping[int, int]:
    """When each worker without work was started, in clock ticks since boot, by process id."""
    parents: dict[int, int] = {}
    found: dict[int, int] = {}
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
            found[pid] = int(stat[_STARTED])
    # Ray's process has a raylet, and that the workers.
    return {pid: started for pid, started in found.items() if parents.get(parents[pid]) == ray_pid}
