"""All good keys in the memory of a process: who calls is known without a query.

The snapshot is read anew when a key is changed anywhere (NOTIFY) and every few seconds. When PostgreSQL is away, the
last one is believed; keys still expire, by the database's clock as it was then and the time that went by since.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import psycopg
import structlog
from sqlalchemy.exc import SQLAlchemyError

from serve_app.access import api_key
from serve_app.access.caller import Caller
from serve_app.access.key_store import CHANNEL, KeyStore, Snapshot
from serve_app.jobs.database import listen

log = structlog.get_logger()

#: Seconds after which a change is seen at the latest, where its notification is lost.
REFRESH_S = 5.0
#: All that strangers can cause, with made-up keys whose checksum is right, is a look in so many seconds.
AGAIN_S = 1.0
#: Seconds that a key which is not in the snapshot waits for such a look.
LOOK_S = 3.0
#: Least seconds between two notes that a key was used.
NOTE_S = 60.0
#: Seconds until a lost connection is made again.
PAUSE_S = 1.0


class RingUnavailable(Exception):
    """A key is not in the snapshot, and the database can't be asked."""


class KeyRing:
    """For one event loop. :meth:`run` keeps it fresh; without that, it is loaded when the first key is shown."""

    def __init__(self, store: KeyStore, database_url: str, clock: Callable[[], float] = time.monotonic) -> None:
        #: Whoever changes keys by it calls :meth:`changed`, so that this process knows at once.
        self.store = store
        self._database_url = database_url
        self._clock = clock
        self._snapshot = Snapshot({}, datetime.fromtimestamp(0, UTC))
        self._read_at = 0.0
        #: One at a time, so that no older snapshot replaces a newer one.
        self._reading = asyncio.Lock()
        self._look: asyncio.Task[bool] | None = None
        self._looked_at = -AGAIN_S
        self._told = asyncio.Event()
        self._used: set[str] = set()
        #: When it was noted last that a key was used.
        self._noted: dict[str, float] = {}

    async def find(self, shown: str) -> Caller | None:
        """Whose key this is; None: nobody's, or it is not good any more. Raises RingUnavailable."""
        if not api_key.is_well_formed(shown):
            return None
        hashed = self.store.hashed(shown)
        entry = self._snapshot.entries.get(hashed)
        if entry is None:
            await self._look_again()
            entry = self._snapshot.entries.get(hashed)
        if entry is None or (entry.until is not None and entry.until <= self._now()):
            return None
        self._used.add(entry.caller.key_id)
        return entry.caller

    async def changed(self) -> None:
        """A key was changed here. Where it can't be read now, the next look finds it."""
        self._look = asyncio.create_task(self._tried(self._read))
        await asyncio.wait({self._look}, timeout=LOOK_S)

    async def run(self) -> None:
        """Keep the snapshot fresh and note who was here, until cancelled."""
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._listen())
            loops.create_task(self._keep())

    async def _look_again(self) -> None:
        look = self._look
        if look is None or (look.done() and self._clock() - self._looked_at >= AGAIN_S):
            self._looked_at = self._clock()
            look = self._look = asyncio.create_task(self._tried(self._read))
        # Not cancelled when it takes long: others wait for it, and a connection that hangs can't be.
        done, _ = await asyncio.wait({look}, timeout=LOOK_S)
        if not done or not look.result():
            raise RingUnavailable

    async def _read(self) -> None:
        async with self._reading:
            # Taken before: a key must not live longer for the time that the answer takes.
            asked_at = self._clock()
            self._snapshot = await self.store.snapshot()
            self._read_at = asked_at

    async def _listen(self) -> None:
        while True:
            try:
                async for _ in listen(self._database_url, CHANNEL):
                    self._told.set()
            except psycopg.OperationalError as error:
                log.warning("keys.listening_again", error=str(error).splitlines()[0])
            await asyncio.sleep(PAUSE_S)

    async def _keep(self) -> None:
        while True:
            await self._tried(self._read)
            await self._tried(self._note_use)
            try:
                async with asyncio.timeout(REFRESH_S):
                    await self._told.wait()
            except TimeoutError:
                continue
            self._told.clear()

    async def _note_use(self) -> None:
        now = self._clock()
        self._noted = {key_id: at for key_id, at in self._noted.items() if now - at < NOTE_S}
        due = self._used - self._noted.keys()
        if due:
            await self.store.note_use(due)
            self._used -= due
            self._noted |= dict.fromkeys(due, now)

    async def _tried(self, step: Callable[[], Awaitable[None]]) -> bool:
        try:
            await step()
        except (SQLAlchemyError, OSError) as error:
            log.warning("keys.database_away", error=f"{type(error).__name__}: {error}".splitlines()[0])
            return False
        return True

    def _now(self) -> datetime:
        return self._snapshot.at + timedelta(seconds=self._clock() - self._read_at)
