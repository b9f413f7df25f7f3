"""What is asked for when a job is to be made once more.

The new job needs nothing of the old one: what was uploaded, or fetched and found good, is copied within the store. Only
what was never fetched is fetched from where it was said to be.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import replace

from pydantic import ValidationError

from deployments.registry import MODELS
from serve_app.api.errors import InputsGone, InvalidRequest, JobNotFailed
from serve_app.api.inputs import storing, whole
from serve_app.intake.inputs import StoredInput
from serve_app.jobs.job import Job, NewJob, Status
from serve_app.storage import keys
from serve_app.storage.base import ObjectMissing, Storage


def again(job: Job, request_id: str) -> NewJob:
    """The same job anew, without its inputs, whoever asks: it is for the key that the old one was for.

    Raises:
        JobNotFailed, InvalidRequest
    """
    if job.status not in (Status.FAILED, Status.CANCELLED):
        raise JobNotFailed(f"The job is {job.status}. Only one that has failed or was cancelled can be retried.")
    if not job.model:
        raise JobNotFailed("The job was never submitted, so there is nothing to retry.")
    spec = MODELS.get(job.model)
    if spec is None:
        raise InvalidRequest(f"There is no model {job.model} any more.")
    try:
        params = spec.params.model_validate(job.params)
    except ValidationError as error:
        raise InvalidRequest("The model takes these parameters no more. Submit a new job.") from error
    return NewJob(
        model=job.model,
        params=job.params,
        variant=spec.variant(params),
        size=spec.size(params),
        effort=job.effort,
        key_id=job.key_id,
        user_id=job.user_id,
        webhook_url=job.webhook_url,
        request_id=request_id,
        priority=job.priority,
        expires_after=job.expires_after,
        timeout_s=job.timeout_s,
        metadata=job.metadata or {},
        retry_of=job.id,
    )


async def with_inputs(new: NewJob, of: Job, to_be_had: Mapping[str, str], storage: Storage) -> NewJob:
    """``new`` with a copy of each input of ``of``; or with where it is ``to_be_had`` now. What was left out stays left
    out.

    Raises:
        InputsGone, StorageError
    """
    sources: dict[str, str] = {}
    uploads: dict[str, str] = {}
    async with storing(new, new.folder, storage):
        for item in MODELS[new.model].inputs:
            if item.optional and item.name not in of.sources and item.name not in of.uploads:
                continue
            target = keys.brought(new.folder, new.nonce, item.name)
            if await _copy(storage, _kept(of, item.name), target):
                uploads[item.name] = target
            elif item.name in to_be_had:
                sources[item.name] = to_be_had[item.name]
            else:
                raise InputsGone
    return replace(new, sources=sources, uploads=uploads)


def _kept(job: Job, name: str) -> tuple[str, ...]:
    """Where the input may lie, best first: as intake judged it, as it was uploaded."""
    found = []
    with contextlib.suppress(KeyError, ValidationError):
        # Not there until intake has come so far; and another version's may be unreadable.
        found.append(StoredInput.model_validate((job.inputs or {})[name]).key)
    if name in job.uploads:
        found.append(job.uploads[name])
    return tuple(found)


async def _copy(storage: Storage, candidates: tuple[str, ...], target: str) -> bool:
    for source in candidates:
        try:
            await whole(storage.copy(source, target))
        except ObjectMissing:
            continue
        return True
    return False
