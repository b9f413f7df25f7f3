"""The parts that handlers of requests need. They take them as one argument."""

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated

import structlog
from fastapi import Depends, Request
from sqlalchemy.ext.asyncio import AsyncEngine

from serve_app.access.key_ring import KeyRing
from serve_app.access.key_store import KeyStore
from serve_app.fair import FairSlots
from serve_app.jobs.abilities import Abilities
from serve_app.jobs.conditions import Conditions
from serve_app.jobs.delivery_log import DeliveryLog
from serve_app.jobs.endpoints import Endpoints
from serve_app.jobs.feed import Feed
from serve_app.jobs.fleet_size import Capacity
from serve_app.jobs.forecast import Forecasts
from serve_app.jobs.job import Job
from serve_app.jobs.reads import JobReads
from serve_app.jobs.signing import SigningSecrets
from serve_app.jobs.store import JobStore
from serve_app.serving.state import ClusterState
from serve_app.settings import Settings
from serve_app.storage.base import MAX_EXPIRY_S, Storage

log = structlog.get_logger()

#: Seconds that Serve has to say how a model does, where that is no more than a help.
SERVE_S = 1.0
#: Least seconds that a link in a job's record or a webhook is good for.
MIN_LINK_S = 300


@dataclass(frozen=True, kw_only=True)
class Services:
    """Everything a handler needs."""

    settings: Settings
    engine: AsyncEngine
    store: JobStore
    reads: JobReads
    forecasts: Forecasts
    abilities: Abilities
    feed: Feed
    storage: Storage
    cluster: ClusterState
    #: Reads of those who watch: what readers ask for must not delay changes.
    watching: JobReads
    #: Of what is stored while a request waits: copies of a job's inputs for a retry, and what came with it.
    copies: FairSlots = field(default_factory=lambda: FairSlots(8, 4))

    @property
    def conditions(self) -> Conditions:
        return Conditions(self.engine)

    async def aclose(self) -> None:
        """End what waits for news, and close the connections."""
        await self.feed.aclose()
        await self.reads.aclose()
        await self.watching.aclose()
        await self.store.aclose()
        await self.engine.dispose()

    @property
    def endpoints(self) -> Endpoints:
        return Endpoints(self.engine)

    @property
    def delivery_log(self) -> DeliveryLog:
        return DeliveryLog(self.engine)

    @property
    def signing_secrets(self) -> SigningSecrets:
        return SigningSecrets(self.settings.signing_secret, self.settings.signing_root)

    async def capacity(self, deployment: str) -> Capacity | None:
        """Of a deployment; None if Serve does not answer at once, or has no such deployment."""
        try:
            async with asyncio.timeout(SERVE_S):
                state = (await self.cluster.models()).get(deployment)
        except Exception as error:
            # Whatever ails Serve, what is asked is in the database, and only an estimate is not.
            log.warning("serve_silent", error=repr(error))
            return None
        if state is None:
            return None
        return Capacity(running=state.running_replicas, most=state.max_replicas, slots=state.slots)

    async def result_url(self, job: Job) -> str | None:
        """Where the finished video can be fetched: the public bucket if there is one, else a link that is good for as
        long as the video is kept, at most seven days."""
        return job.result_url if job.output_key is None else await self._link(job, job.output_key)

    async def poster_url(self, job: Job) -> str | None:
        """Where its first frame can be fetched, for as long as the video; None where there is none."""
        return None if job.poster_key is None else await self._link(job, job.poster_key)

    async def _link(self, job: Job, key: str) -> str:
        return self.storage.public_url(key) or await self.storage.presign_get(key, self._link_life_s(job))

    def _link_life_s(self, job: Job) -> int:
        """Until the job is forgotten; ``COMPLETED_RETENTION_COUNT`` may make that earlier."""
        kept_s = self.settings.completed_retention_hours * 3600
        if job.completed_at is not None:
            kept_s -= (datetime.now(UTC) - job.completed_at).total_seconds()
        return int(min(max(kept_s, MIN_LINK_S), MAX_EXPIRY_S))


def build_ring(services: Services) -> KeyRing:
    """The deployment's keys, for a process that has these parts."""
    settings = services.settings
    return KeyRing(KeyStore(services.engine, settings.hashing_key), settings.database_url)


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesOf = Annotated[Services, Depends(_services)]
