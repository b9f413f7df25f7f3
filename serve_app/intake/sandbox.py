"""Programs that read untrusted bytes, run with limits and without our secrets.

A decoder that is exploited or goes mad then has little time, little memory, no environment and no file to write to.
It is still the same user on the same machine: a container of its own would be the next step.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

_LIMITED = Path(__file__).with_name("limited.py")
#: Nothing of ours: the keys of the object store are in our environment.
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a program may use."""

    #: Seconds of computing.
    cpu_s: int
    #: Seconds in all; more than the CPU time, for a disk that is slow or a machine that is busy.
    wall_s: float
    #: Bytes of address space.
    memory: int
    #: Bytes of output, each stream.
    output: int


@dataclass(frozen=True)
class Finished:
    """How a program ended."""

    #: Exit status; negative for a signal. None if it ran out of ``wall_s`` and was killed.
    status: int | None
    stdout: str
    stderr: str


async def run_limited(argv: Sequence[str], limits: Limits) -> Finished:
    """Run a program to its end. If the caller is cancelled, the program is killed."""
    # Files rather than pipes: the kernel bounds them, and no reader is needed that could fall behind.
    with TemporaryFile() as out, TemporaryFile() as err:
        process = _start(argv, limits, out, err)
        status: int | None = None
        try:
            # A thread rather than asyncio's child watchers: those depend on the loop and on which thread it runs in.
            status = await asyncio.to_thread(process.wait, limits.wall_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return Finished(status, _text(out), _text(err))


def _start(argv: Sequence[str], limits: Limits, out: BinaryIO, err: BinaryIO) -> subprocess.Popen[bytes]:
    bounds = (str(limits.cpu_s), str(limits.memory), str(limits.output))
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", str(_LIMITED), *bounds, *argv],
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        env=_ENVIRONMENT,
        cwd="/",
        start_new_session=True,
    )


def _text(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")
