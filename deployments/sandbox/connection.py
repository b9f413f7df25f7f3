"""This process's keeper: started at the first use, and anew should somebody have killed it."""

import atexit
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

from deployments.sandbox.keeper import REQUEST_BYTES
from deployments.sandbox.layers import Layers

#: Seconds that the keeper has to come up; on an idle machine it takes 0.1.
STARTED_S = 60
_ROOT = str(Path(__file__).parents[2])
#: The folder that holds our packages is all it imports from, besides the standard library.
_PROGRAM = "import sys; sys.path.append(sys.argv[1]); from deployments.sandbox.keeper import main; main()"


class SandboxError(Exception):
    """The sandbox could not be put up, or the program not be started: our fault, not the file's."""


class Connection:
    """A keeper and the way to it. ``layers`` is what it found out about this machine. Raises :class:`SandboxError`."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Nothing of ours, but for where Python may have to look for its own library.
        environment = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", "-c", _PROGRAM, _ROOT],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=environment,
                cwd="/",
                # Ctrl-C in a terminal goes to us, and we end what we started.
                start_new_session=True,
            )
        self._channel.settimeout(STARTED_S)
        told = b""
        with contextlib.suppress(OSError):
            told = self._channel.recv(REQUEST_BYTES)
        if not told:
            self._process.kill()
            raise SandboxError(f"the sandbox's keeper did not come up (exit status {self._process.wait()})")
        self._channel.settimeout(None)
        self.layers = Layers(**json.loads(told))

    @property
    def usable(self) -> bool:
        """Whether it is there, and ours: not a parent's, from before a fork."""
        return self._pid == os.getpid() and self._process.poll() is None

    def send(self, request: bytes, files: list[int]) -> None:
        """Hand a request over, with open files. Raises OSError if the keeper is gone."""
        socket.send_fds(self._channel, [request], files)

    def close(self) -> None:
        """End the keeper, and with it all that it keeps."""
        self._channel.close()
        if self._pid == os.getpid():
            self._process.wait()


_lock = threading.Lock()
_current: Connection | None = None


def connection() -> Connection:
    """The keeper of this process. Raises :class:`SandboxError`."""
    global _current
    with _lock:
        if _current is None or not _current.usable:
            if _current is None:
                atexit.register(_close)
            else:
                _current.close()
            _current = None
            _current = Connection()
        return _current


def _close() -> None:
    if _current is not None:
        _current.close()
