"""Inputs that lie in the store for a job that is about to be: what came with its request, or was copied for it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from serve_app.jobs.job import NewJob
from serve_app.storage import keys
from serve_app.storage.base import Storage, StorageError

log = structlog.get_logger()


@asynccontextmanager
async def storing(new: NewJob, storage: Storage) -> AsyncIterator[None]:
    """What the block stores for ``new`` is deleted unless the block ends well."""
    try:
        yield
    except BaseException:
        # Also when its client is given up: storing may take longer than an answer.
        await asyncio.shield(_delete(new, storage))
        raise


async def discard(new: NewJob, storage: Storage) -> None:
    """Delete what lies in the store for a job that is not to be. What was put to a link is another job's, the one that
    was opened for it."""
    if any(keys.owner(key) == (new.id, new.nonce) for key in new.uploads.values()):
        await asyncio.shield(_delete(new, storage))


async def _delete(new: NewJob, storage: Storage) -> None:
    try:
        for prefix in keys.prefixes(new.folder):
            await storage.delete_prefix(prefix)
    except StorageError as error:
        # It belongs to no job, so `Orphans` finds it.
        log.warning("inputs_not_deleted", job_id=new.id, error=error.message)
