"""Programs in the sandbox as the service sees them: started with open files, waited for, killed."""

import asyncio
import contextlib
import fcntl
import importlib.util
import json
import os
import select
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import FileIO
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any, BinaryIO, Self

from deployments.sandbox.connection import SandboxError, connection
from deployments.sandbox.keeper import REQUEST_BYTES
from deployments.sandbox.layers import Layers

#: All that a program is told of where it runs. Ray's token and the keys of the object store are in our environment.
ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/bin:/bin",
    "LC_ALL": "C",
    "OMP_NUM_THREADS": "1",
    # Address space, which is limited, would otherwise go by the number of processors.
    "MALLOC_ARENA_MAX": "8",
}
#: Descriptors of one program.
MOST_FILES = 64
#: Bytes of a stream's log that are looked at.
LOG_BYTES = 64 * 1024

#: An open file, or the number of its descriptor.
File = int | BinaryIO


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a program may use; None is no limit."""

    #: Seconds of computing.
    cpu_s: int | None
    #: Bytes of address space.
    memory: int | None
    #: Bytes of each file that it writes; a write beyond fails. Pipes are not bounded.
    output: int | None


@dataclass(frozen=True)
class Program:
    """Another program. It can open its own file and the libraries of the system, and nothing else."""

    #: The first is the program's path.
    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=lambda: ENVIRONMENT)
    #: It reads nothing of a stranger's and needs a device: limits and a clean environment are all it gets.
    trusted: bool = False


@dataclass(frozen=True)
class Call:
    """A function of ours that reads descriptor 0 and writes descriptor 1. It can open nothing at all.

    Its module imports all that will ever be needed: the standard library, this package and ``packages``.
    """

    #: ``module:function``.
    function: str
    arguments: Sequence[str | int] = ()
    #: Names of installed packages.
    packages: Sequence[str] = ()


@dataclass(frozen=True)
class Ended:
    """How a program ended."""

    #: Exit status, negative for a signal. None if it ran out of time and was killed, or nobody knows.
    status: int | None
    #: Seconds of computing.
    cpu_s: float


@dataclass(frozen=True)
class Finished(Ended):
    """How a program ended, and what it wrote."""

    stdout: bytes
    stderr: bytes


_UNKNOWN = Ended(None, 0.0)


class Process:
    """A program that runs. It ends with the ``with`` block, and with this process whatever ends that."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control

    def wait(self, timeout_s: float | None = None) -> Ended:
        """Wait for its end; it is killed after ``timeout_s``. Raises :class:`SandboxError` if it never ran."""
        self._control.settimeout(timeout_s)
        try:
            return self._end(self._control.recv(REQUEST_BYTES))
        except TimeoutError:
            return self._out_of_time()

    async def ended(self, timeout_s: float) -> Ended:
        """The same on the event loop. It is killed, too, if the caller is cancelled."""
        self._control.setblocking(False)
        try:
            async with asyncio.timeout(timeout_s):
                return self._end(await asyncio.get_running_loop().sock_recv(self._control, REQUEST_BYTES))
        except TimeoutError:
            return self._out_of_time()
        except asyncio.CancelledError:
            self.kill()
            raise

    def kill(self) -> Ended:
        """End it if it still runs, and wait until it is gone: -SIGKILL, or how it had ended by itself."""
        if self._control.fileno() < 0:
            return _UNKNOWN
        self._control.settimeout(None)
        # Cuts the life line. The other direction brings the answer.
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError, SandboxError):
            return self._end(self._control.recv(REQUEST_BYTES))
        self._control.close()
        return _UNKNOWN

    def _out_of_time(self) -> Ended:
        return Ended(None, self.kill().cpu_s)

    def _end(self, told: bytes) -> Ended:
        self._control.close()
        answer: dict[str, Any] = json.loads(told) if told else {"failed": "its keeper is gone"}
        if "failed" in answer:
            raise SandboxError(f"a program could not be run in the sandbox: {answer['failed']}")
        return Ended(answer["status"], answer["cpu_s"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()


def start(what: Program | Call, limits: Limits, files: Sequence[File]) -> Process:
    """Run ``what`` with ``files`` as its descriptors 0, 1, 2 and so on. Raises :class:`SandboxError`."""
    trusted = isinstance(what, Program) and what.trusted
    request: dict[str, Any] = {
        "limits": {**asdict(limits), "files": None if trusted else MOST_FILES},
        "trusted": trusted,
    }
    if isinstance(what, Program):
        request |= {"run": list(what.arguments), "environment": dict(what.environment)}
    else:
        folders = [_folder_of(name) for name in what.packages]
        request |= {"call": what.function, "arguments": list(what.arguments), "imports": folders}
    data = json.dumps(request).encode()
    numbers = [file if isinstance(file, int) else file.fileno() for file in files]
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            connection().send(data, [theirs.fileno(), *numbers])
        except (BrokenPipeError, ConnectionResetError):
            # Somebody killed the keeper just now.
            connection().send(data, [theirs.fileno(), *numbers])
    return Process(ours)


def run(what: Program | Call, limits: Limits, source: BinaryIO | None, *, timeout_s: float) -> Finished:
    """Run ``what`` to its end with ``source`` as descriptor 0.

    What it writes to descriptors 1 and 2 is bounded by ``limits.output`` each.
    """
    with _files(source) as files, start(what, limits, files) as process:
        return _finished(process.wait(timeout_s), files)


async def finish(what: Program | Call, limits: Limits, source: BinaryIO | None, *, timeout_s: float) -> Finished:
    """The same as :func:`run` on the event loop. The program is killed if the caller is cancelled."""
    with _files(source) as files, start(what, limits, files) as process:
        return _finished(await process.ended(timeout_s), files)


class Stream:
    """A program whose descriptor 1 is a pipe. Leaving the ``with`` block kills it if it still runs."""

    def __init__(self, what: Program | Call, limits: Limits, source: BinaryIO | None) -> None:
        reading, writing = os.pipe()
        self.pipe = FileIO(reading, "rb")
        # A megabyte instead of 64 kB: a frame in a few reads. Not granted everywhere, and only a matter of speed.
        with contextlib.suppress(OSError):
            fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, 1024**2)
        self._log = TemporaryFile()  # noqa: SIM115 - closed by _close
        try:
            with open(os.devnull, "rb") as nothing:
                self.process = start(what, limits, (source or nothing, writing, self._log))
        except BaseException:
            self._close()
            raise
        finally:
            os.close(writing)

    def fill(self, room: memoryview, stalled_s: float) -> int:
        """Read until ``room`` (bytes) is full or the output ends; how many bytes were read.

        Raises TimeoutError when nothing comes for ``stalled_s``: a program that hangs is noticed by nobody else.
        """
        filled = 0
        while filled < len(room):
            if not select.select([self.pipe], [], [], stalled_s)[0]:
                raise TimeoutError
            count = self.pipe.readinto(room[filled:])
            if not count:
                break
            filled += count
        return filled

    def log(self) -> bytes:
        """What it wrote to descriptor 2 so far."""
        return os.pread(self._log.fileno(), LOG_BYTES, 0)

    def _close(self) -> None:
        self.pipe.close()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.process.kill()
        self._close()


def layers() -> Layers:
    """What a program is kept in on this machine, found out once in the life of this process."""
    return connection().layers


@contextlib.contextmanager
def _files(source: BinaryIO | None) -> Iterator[tuple[BinaryIO, BinaryIO, BinaryIO]]:
    # Files rather than pipes: the kernel bounds them, and no reader is needed that could fall behind.
    with TemporaryFile() as out, TemporaryFile() as err, open(os.devnull, "rb") as nothing:
        yield source or nothing, out, err


def _finished(ended: Ended, files: tuple[BinaryIO, BinaryIO, BinaryIO]) -> Finished:
    for file in files[1:]:
        file.seek(0)
    return Finished(ended.status, ended.cpu_s, files[1].read(), files[2].read())


def _folder_of(package: str) -> str:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SandboxError(f"the package {package} is not installed")
    return str(Path(spec.origin).parents[1])
