"""The launcher's end of the socket, by which Ray says what it wants."""

import asyncio
import contextlib
import os
import shutil
import socket
import struct
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol, Self

import structlog
from pydantic import ValidationError

from cluster.autoscaler.exchange import MOST_BYTES, Standing, Wishes
from cluster.fleet.slots import Node

log = structlog.get_logger()

#: One for Ray's monitor, and what a restarted one leaves behind.
_CONNECTIONS = 8
#: Seconds between two lines, whoever sends them: Ray sends one a second, and whatever else runs as Ray's user must not
#: take the launcher's time. And between two lines of log about those that are refused.
_PAUSE_S = 0.05
#: For one line, or for an answer to be taken: Ray says something each second, and a place that is held in silence is
#: one that a restarted Ray lacks.
_SILENT_S = 30.0
_LOG_S = 60.0


class Wishable(Protocol):
    """Of the fleet, what may be asked by this way. Nothing here waits."""

    def add(self, slot_id: str, node_type: str) -> bool: ...

    def dismiss(self, node_id: str) -> bool: ...

    def nodes(self) -> Sequence[Node]: ...


class WishServer:
    """``async with`` it: then it listens at :attr:`path`, in a :attr:`folder` of this process's own."""

    def __init__(self, fleet: Wishable, users: Collection[int]) -> None:
        """``users``: ids of those who may ask."""
        self._fleet, self._users = fleet, frozenset(users)
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()
        #: By event, the loop's time of its last line of log.
        self._logged: dict[str, float] = {}
        self._stack = contextlib.ExitStack()

    async def __aenter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="video-api-"))
        self._stack.callback(shutil.rmtree, self.folder)
        # Through it, and to the one file whose name is known.
        self.folder.chmod(0o711)
        self.path = self.folder / "wishes.sock"
        self._server = await asyncio.start_unix_server(self._accept, self.path, limit=MOST_BYTES)
        # Who asks says the kernel.
        self.path.chmod(0o666)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._stack.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._tasks) >= _CONNECTIONS or _user(writer) not in self._users:
            writer.transport.abort()
            return
        self._tasks.add(task)
        try:
            while line := await asyncio.wait_for(reader.readline(), _SILENT_S):
                async with self._turn:
                    writer.write(self._answer(line).model_dump_json().encode() + b"\n")
                    await asyncio.sleep(_PAUSE_S)
                await asyncio.wait_for(writer.drain(), _SILENT_S)
        except (OSError, ValueError) as error:
            # It has left or says nothing, or its line is no such line.
            self._warn("fleet.wishes_refused", error=type(error).__name__)
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    def _answer(self, line: bytes) -> Standing:
        """Raises ValueError."""
        try:
            wishes = Wishes.model_validate_json(line)
        except ValidationError:
            raise ValueError("not a line of wishes") from None
        refused = [each for slot_id, each in wishes.add.items() if not self._fleet.add(slot_id, each)]
        if refused:
            self._warn("fleet.wish_refused", node_type=refused[0], slots=len(refused))
        for slot_id in wishes.dismiss:
            self._fleet.dismiss(slot_id)
        return Standing(nodes={each.id: each.node_type for each in self._fleet.nodes() if not each.dismissed})

    def _warn(self, event: str, **facts: object) -> None:
        """Now and then."""
        now = asyncio.get_running_loop().time()
        if now - self._logged.get(event, -_LOG_S) >= _LOG_S:
            self._logged[event] = now
            log.warning(event, **facts)


def _user(writer: asyncio.StreamWriter) -> int:
    connection: socket.socket = writer.get_extra_info("socket")
    size = struct.calcsize("3i")
    _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(user)


def users(ray_user: int | None) -> tuple[int, ...]:
    """Those who may ask: whom Ray runs as, and this process's own."""
    return (os.geteuid(),) if ray_user is None else (os.geteuid(), ray_user)
