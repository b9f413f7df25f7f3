"""From a job's row to what a replica is handed."""

from pydantic import ValidationError

from deployments.contract import Lease, MediaInput, Task
from deployments.registry import MODELS
from serve_app.intake.inputs import StoredInput
from serve_app.jobs.job import Job
from serve_app.storage import keys
from serve_app.storage.base import InvalidKey, Storage

#: Links outlive any run, its waits included: they are made anew when a replica begins. S3 allows at most seven days.
URL_LIFETIME_S = 24 * 3600


class UnreadableJob(Exception):
    """The row is not what this version writes, so nothing can be made of it."""


class Tasks:
    """Makes tasks; their links are good from the moment they are made."""

    def __init__(self, storage: Storage, lease_s: float) -> None:
        self._storage = storage
        self._lease_s = lease_s

    async def of(self, job: Job, lease: Lease) -> Task:
        """Raises :class:`UnreadableJob`."""
        try:
            spec = MODELS[job.model]
            stored = {name: StoredInput.model_validate(item) for name, item in (job.inputs or {}).items()}
            return Task(
                lease=lease,
                model=spec.name,
                deployment=job.deployment,
                params=dict(job.params),
                inputs={name: await self._input(item) for name, item in stored.items()},
                output_url=await self._storage.presign_put(
                    keys.output(job.folder, lease.attempt), URL_LIFETIME_S, "video/mp4"
                ),
                poster_url=await self._storage.presign_put(
                    keys.poster(job.folder, lease.attempt), URL_LIFETIME_S, "image/webp"
                ),
                lease_s=self._lease_s,
                timeout_s=spec.timeout_s if job.timeout_s is None else min(job.timeout_s, spec.timeout_s),
                alone=job.alone,
            )
        except (ValidationError, InvalidKey, AttributeError, KeyError, TypeError, ValueError) as error:
            raise UnreadableJob(f"{type(error).__name__}: {error}") from error

    async def _input(self, item: StoredInput) -> MediaInput:
        return MediaInput(content_type=item.content_type, url=await self._storage.presign_get(item.key, URL_LIFETIME_S))
