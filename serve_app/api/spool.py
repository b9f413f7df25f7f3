"""Where large bodies of requests lie until they are answered: on disk, so that slow senders hold no memory.

What they take is promised before anything is read, and bounded in bytes over all and by key. What they consist of lies
beside them for as long: so twice as much at worst.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import structlog
from starlette.types import Receive, Scope

from serve_app.api.errors import RateLimited, Unavailable
from serve_app.disk import require_room
from serve_app.fair import FairSlots
from serve_app.intake.workdir import Workdir

log = structlog.get_logger()

#: Where a request's scope has its :class:`Arrived`.
_ARRIVED = "video_api.arrived"
#: Bytes that are gathered before they are written.
_CHUNK = 64 * 1024
#: Bytes for which the smallest one counts: it has an open file, too.
_LEAST = 1024 * 1024
#: Seconds after which a place may be free again.
_AGAIN_S = "5"


@contextmanager
def our_disk() -> Iterator[None]:
    """A full disk is no fault of the request's: Unavailable."""
    try:
        yield
    except OSError as error:
        log.error("requests_not_spooled", error=error.strerror or str(error))
        raise Unavailable("There is no room for files in requests now.", headers={"retry-after": "60"}) from error


class Spool:
    """A private folder with room for ``most`` bytes. A key gets three quarters of what the others have left, as in
    :mod:`serve_app.fair`, or one body: so whatever some keys hold, there is room for the next one."""

    def __init__(self, root: Path, *, most: int) -> None:
        self._root = root
        self._most = most
        self._taken = 0
        self._taken_by_key = Counter[str]()
        self._workdir: Workdir | None = None
        self._making = Lock()
        #: Bodies taken apart at a time: each may need four times its bytes in memory.
        self.slots = FairSlots(2, 1)

    @contextmanager
    def room(self, size: int, key_id: str) -> Iterator[None]:
        """Keep ``size`` bytes for a request of this key (empty: of one that has no share) while the block runs.

        Raises Unavailable or RateLimited, with when to come again.
        """
        size = max(size, _LEAST)
        again = {"retry-after": _AGAIN_S}
        if self._taken + size > self._most:
            raise Unavailable("Too many large requests at a time. Try again shortly.", headers=again)
        held = self._taken_by_key[key_id]
        if key_id and held and held + size > (self._most - self._taken + held) * 3 / 4:
            raise RateLimited("Too many large requests of this key at a time.", headers=again)
        self._taken += size
        self._taken_by_key[key_id] += size
        try:
            yield
        finally:
            self._taken -= size
            self._taken_by_key[key_id] -= size
            # Without those that have none.
            self._taken_by_key = +self._taken_by_key

    def folder(self) -> AbstractContextManager[Path]:
        """An empty folder, gone when the block ends. For a thread: this is work for the disk."""
        with self._making:
            # Only now: most who make a gate never get such a request.
            self._workdir = self._workdir or Workdir(self._root)
        return self._workdir.folder()

    @asynccontextmanager
    async def body(self, receive: Receive) -> AsyncIterator[Path | None]:
        """The whole body in a file; None: the client has left. Raises what ``receive`` does; Unavailable where the disk
        is full."""
        with ExitStack() as opened:
            with our_disk():
                path = await asyncio.to_thread(lambda: opened.enter_context(self.folder())) / "body"
                whole = await self._write(path, receive)
            yield path if whole else None
            await asyncio.to_thread(opened.close)

    async def _write(self, path: Path, receive: Receive) -> bool:
        gathered, more = bytearray(), True
        # Buffered: closing it waits for a thread that writes.
        with await asyncio.to_thread(path.open, "wb") as file:

            def write(data: bytes) -> None:
                require_room(self._root, len(data))
                file.write(data)

            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return False
                gathered += message.get("body", b"")
                more = message.get("more_body", False)
                if len(gathered) >= _CHUNK or not more:
                    await asyncio.to_thread(write, bytes(gathered))
                    gathered.clear()
            await asyncio.to_thread(file.flush)
        return True


@dataclass(frozen=True)
class Arrived:
    """A request's body, which is here whole."""

    #: Itself, or the file that it is in if it is a large one.
    content: bytes | Path
    spool: Spool
    #: Gives back what it takes on the disk, once it has been read: an answer may be waited for.
    release: Callable[[], Awaitable[None]]


def show(scope: Scope, arrived: Arrived) -> None:
    scope[_ARRIVED] = arrived


def arrived(scope: Scope) -> Arrived | None:
    """The body of a request whose route takes large ones; None where no gate has let it in."""
    found: Arrived | None = scope.get(_ARRIVED)
    return found
