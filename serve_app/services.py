"""The parts a process is made of, built from the settings. Request handlers take them as one argument."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.ext.asyncio import AsyncEngine

from serve_app.cluster_state import ClusterState
from serve_app.jobs.conditions import Conditions
from serve_app.jobs.database import connect
from serve_app.jobs.job import Job
from serve_app.jobs.queue import JobQueue
from serve_app.jobs.store import JobStore
from serve_app.settings import Settings
from serve_app.storage.base import MAX_EXPIRY_S, Storage
from serve_app.storage.local import LocalStorage
from serve_app.storage.s3 import S3Storage

#: Least seconds that a link in a job's record or a webhook is good for.
MIN_LINK_S = 300


@dataclass(frozen=True, kw_only=True)
class Services:
    """Everything a handler needs."""

    settings: Settings
    engine: AsyncEngine
    store: JobStore
    queue: JobQueue
    storage: Storage
    cluster: ClusterState

    @classmethod
    def build(cls, settings: Settings, cluster: ClusterState) -> "Services":
        engine = connect(settings.database_url)
        store = JobStore(engine, lease_s=settings.lease_seconds, webhook_url=settings.api_webhook_url)
        return cls(
            settings=settings,
            engine=engine,
            store=store,
            queue=JobQueue(engine),
            storage=build_storage(settings),
            cluster=cluster,
        )

    @property
    def conditions(self) -> Conditions:
        return Conditions(self.engine)

    async def result_url(self, job: Job) -> str | None:
        """Where the finished video can be fetched: the public bucket if there is one, else a link that is good for as
        long as the video is kept, at most seven days."""
        if job.output_key is None:
            return job.result_url
        public = self.storage.public_url(job.output_key)
        return public or await self.storage.presign_get(job.output_key, self._link_life_s(job))

    def _link_life_s(self, job: Job) -> int:
        """Until the job is forgotten; ``COMPLETED_RETENTION_COUNT`` may make that earlier."""
        kept_s = self.settings.completed_retention_hours * 3600
        if job.completed_at is not None:
            kept_s -= (datetime.now(UTC) - job.completed_at).total_seconds()
        return int(min(max(kept_s, MIN_LINK_S), MAX_EXPIRY_S))


def build_storage(settings: Settings) -> Storage:
    """S3 or R2 when an endpoint is set, else files under the data directory."""
    if settings.r2_endpoint:
        return S3Storage(
            endpoint=settings.r2_endpoint,
            access_key=settings.r2_access_key.get_secret_value(),
            secret_key=settings.r2_secret_key.get_secret_value(),
            bucket=settings.r2_bucket,
            region=settings.r2_region,
            public_base=settings.r2_public_url,
        )
    return LocalStorage(settings.data_dir / "media", settings.base_url, settings.signing_key)


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesOf = Annotated[Services, Depends(_services)]
