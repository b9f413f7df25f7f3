"""Whether the store can be relied on at the moment, asked cheaply: no attempt should start while it refuses."""

import asyncio
import time

import structlog

from serve_app.storage.base import Storage, StorageError

log = structlog.get_logger()

#: Seconds for which an answer counts.
FRESH_S = 5.0
#: A store that does not answer in this time refuses.
CHECK_TIMEOUT_S = 5.0


class StorageWatch:
    """One check at a time, however many ask."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._asking = asyncio.Lock()
        self._trouble: str | None = None
        #: When the check began that the answer is from.
        self._asked_at = float("-inf")

    async def trouble(self, *, fresh: bool = False) -> str | None:
        """Why the store refuses; None while it works. ``fresh``: an answer from before this call does not do."""
        called_at = time.monotonic()
        async with self._asking:
            if self._asked_at < (called_at if fresh else time.monotonic() - FRESH_S):
                asked_at = time.monotonic()
                self._take(await self._check())
                self._asked_at = asked_at
            return self._trouble

    def _take(self, trouble: str | None) -> None:
        if (trouble is None) != (self._trouble is None):
            log.warning("storage_down" if trouble else "storage_up", error=trouble)
        self._trouble = trouble

    async def _check(self) -> str | None:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                await self._storage.check()
        except StorageError as error:
            return error.message
        except TimeoutError:
            return "The object store does not answer."
        return None
