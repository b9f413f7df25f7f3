"""Inputs that lie in the store for a job that is about to be: what came with its request, or was copied for it."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import structlog

from serve_app.jobs.job import NewJob
from serve_app.storage import keys
from serve_app.storage.base import Storage, StorageError

log = structlog.get_logger()


@asynccontextmanager
async def storing(new: NewJob, folder: str, storage: Storage) -> AsyncIterator[None]:
    """What the block stores for ``new`` in the job's ``folder`` is deleted unless the block ends well."""
    try:
        yield
    except BaseException:
        # Also when its client is given up: storing may take longer than an answer.
        await asyncio.shield(_delete(new, folder, storage))
        raise


async def whole(storing: Coroutine[Any, Any, None]) -> None:
    """To its end, also when it is cancelled: a thread that writes can't be, and what it writes after its prefix was
    deleted would stay."""
    task = asyncio.create_task(storing)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


async def discard(new: NewJob, storage: Storage) -> None:
    """Delete what its request has brought for a job that is not to be. What was put to a link before stays: a later
    request may want it."""
    folders = {folder for key in new.uploads.values() if (folder := keys.brought_to(key, new.nonce)) is not None}
    for folder in folders:
        await asyncio.shield(_delete(new, folder, storage))


async def _delete(new: NewJob, folder: str, storage: Storage) -> None:
    try:
        await storage.delete_prefix(keys.brought_by(folder, new.nonce))
    except StorageError as error:
        # Where it belongs to no job, `Orphans` finds it.
        log.warning("inputs_not_deleted", job_id=new.id, error=error.message)
