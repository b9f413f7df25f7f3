"""The parent's end of a worker process."""

import asyncio
import itertools
import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from serve_app.outbound.limits import MAX_MESSAGE

#: What a worker may know of our environment: nothing with a secret in it.
_PASSED_ON = (
    *("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "RES_OPTIONS", "LOCALDOMAIN"),
)
_ROOT = Path(__file__).parents[2]
#: Isolated, so that neither the environment nor a working folder decides what is imported: the code we run ourselves.
_PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from serve_app.outbound.worker import main
main(int(sys.argv[2]), int(sys.argv[3]))
"""
#: A worker is asked for a sign of life this often, and killed without one for so long.
_PING_S, _PATIENCE_S = 5, 20
#: A request that was cancelled lets go of its file at once, unless the worker is stuck.
_LET_GO_S = 1


class WorkerLost(Exception):
    """The process has ended or does not react any more. Whether the request was carried out is unknown."""

    def __init__(self, pid: int) -> None:
        super().__init__(
            f"the outbound worker {pid} has ended or is stuck; if it had something to say, it is on stderr"
        )
        self.pid = pid


class WorkerProcess:
    """Make one with :meth:`start`. Requests and replies as ``worker.py`` describes."""

    def __init__(
        self, process: subprocess.Popen[bytes], streams: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    ) -> None:
        self.pid = process.pid
        #: Requests under way, by owner.
        self.busy = Counter[str]()
        self._process = process
        self._reader, self._writer = streams
        self._numbers = itertools.count()
        #: Whoever waits for a reply; None is told when the worker is lost.
        self._asked: dict[int, asyncio.Future[Mapping[str, Any] | None]] = {}
        self._lost = False
        self._listening = asyncio.create_task(self._listen())
        self._watching = asyncio.create_task(self._watch())

    @classmethod
    async def start(cls, config: Mapping[str, Any]) -> Self:
        """Raises OSError if there can be no more processes.

        The process dies with the *thread* that this is called in: call it in one that lasts.
        """
        ours, theirs = socket.socketpair()
        with theirs, ExitStack() as undo:
            undo.callback(ours.close)
            process = subprocess.Popen(  # noqa: ASYNC220 - asyncio's own way depends on which thread the loop runs in
                [sys.executable, "-I", "-c", _PROGRAM, str(_ROOT), str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                env={"MALLOC_ARENA_MAX": "2"} | {name: os.environ[name] for name in _PASSED_ON if name in os.environ},
                pass_fds=[theirs.fileno()],
                cwd="/",
                # A Ctrl-C in the terminal is for us; then we end it.
                start_new_session=True,
            )
            undo.pop_all()
        worker = cls(process, await asyncio.open_connection(sock=ours, limit=MAX_MESSAGE))
        worker._writer.write(_line(config))
        return worker

    @property
    def alive(self) -> bool:
        return not self._lost

    async def ask(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Have a request carried out. Cancelling it cancels it there.

        Raises:
            WorkerLost: there is no reply and will be none.
        """
        if self._lost:
            raise WorkerLost(self.pid)
        number, owner = next(self._numbers), request.get("owner", "")
        message = _line({"id": number, **request})
        if len(message) > MAX_MESSAGE:
            raise ValueError(f"the request is too long: {len(message)} bytes")
        asked: asyncio.Future[Mapping[str, Any] | None] = asyncio.get_running_loop().create_future()
        self._asked[number] = asked
        self.busy[owner] += 1
        try:
            self._writer.write(message)
            reply = await asyncio.shield(asked)
        except asyncio.CancelledError:
            self._writer.write(_line({"id": number, "do": "cancel"}))
            await asyncio.wait({asked}, timeout=_LET_GO_S)
            raise
        finally:
            del self._asked[number]
            self.busy[owner] -= 1
            if not self.busy[owner]:
                del self.busy[owner]
        if reply is None:
            raise WorkerLost(self.pid)
        return reply

    async def aclose(self) -> None:
        """End the process."""
        self._process.kill()
        await asyncio.wait({self._listening})

    async def _listen(self) -> None:
        try:
            while line := await self._reader.readline():
                reply = json.loads(line)
                asked = self._asked.get(reply["id"])
                if asked is not None and not asked.done():
                    asked.set_result(reply)
        except (OSError, ValueError):
            # What is not a line of JSON is as good as no worker.
            pass
        finally:
            self._lost = True
            self._watching.cancel()
            self._process.kill()
            self._writer.close()
            for asked in self._asked.values():
                if not asked.done():
                    asked.set_result(None)
            await asyncio.to_thread(self._process.wait)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_PING_S)
            ping = asyncio.create_task(self.ask({"do": "ping"}))
            # Twice, for it may be our own loop that stood still: then the reply is there and only has to be read.
            for patience in (_PATIENCE_S, 1):
                await asyncio.wait({ping}, timeout=patience)
            if not ping.done():
                self._process.kill()
                return


def _line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"
