"""Media of nobody: what was put to a link after its job was gone, and what an older version left behind.

Looked for all the time, a page of the store at a call; a round through all of it is followed by a rest.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import structlog
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from serve_app.jobs.tables import jobs
from serve_app.storage import keys
from serve_app.storage.base import Storage, StorageError

log = structlog.get_logger()

#: Objects looked at in one call.
PAGE = 1000
#: Seconds that an object has to be old: whoever writes it may be about to say so.
AGE_S = 24 * 3600
#: Seconds from one round to the next.
REST_S = 3600


class Orphans:
    """Deletes them. Where it stands is not kept: a new process begins anew."""

    def __init__(self, engine: AsyncEngine, storage: Storage, clock: Callable[[], float] = time.time) -> None:
        """``clock`` is Unix time in seconds, as the store dates its objects."""
        self._engine = engine
        self._storage = storage
        self._clock = clock
        self._roots = list(keys.ROOTS)
        self._after = ""
        self._rest_until = 0.0

    async def sweep(self) -> int:
        """Look at the next page. Returns 0, so that it is done once in a while and not at full speed."""
        if self._clock() < self._rest_until:
            return 0
        try:
            page = await self._storage.page(f"{self._roots[0]}/", self._after, PAGE)
            old = [found.key for found in page if self._clock() - found.modified > AGE_S]
            owners = {owner for key in old if (owner := keys.owner(key)) is not None}
            nonces = await self._nonces([job for job, _ in owners])
            for job, nonce in sorted(owners):
                # What has no nonce is from before there were any; it belongs to any job of that id.
                if nonces.get(job) != nonce if nonce else job not in nonces:
                    prefix = f"{self._roots[0]}/{job}/{nonce}/" if nonce else f"{self._roots[0]}/{job}/"
                    deleted = await self._storage.delete_prefix(prefix)
                    log.warning("orphan_deleted", job_id=job, prefix=prefix, objects=deleted)
        except StorageError as error:
            log.warning("orphans_not_swept", error=error.message)
            return 0
        if len(page) == PAGE:
            self._after = page[-1].key
        else:
            self._after = ""
            self._roots.append(self._roots.pop(0))
            if self._roots == list(keys.ROOTS):
                self._rest_until = self._clock() + REST_S
        return 0

    async def _nonces(self, ids: Sequence[str]) -> Mapping[str, str]:
        """By id, of the jobs that there are."""
        query = select(jobs.c.id, jobs.c.nonce).where(jobs.c.id.in_(ids))
        async with self._engine.connect() as db:
            return {row.id: row.nonce for row in await db.execute(query)}
