"""``/health`` and ``/metrics``: public, cheap, true."""

import asyncio
import os
from collections.abc import Awaitable, Mapping
from typing import TypeVar

import structlog
from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from deployments.engine import ModelSpec
from deployments.registry import MODELS
from serve_app.cluster_state import ModelState
from serve_app.jobs import metrics
from serve_app.jobs.job import Status
from serve_app.schemas import Health, QueueCounts, Weights
from serve_app.services import ServicesOf
from serve_app.settings import Settings

log = structlog.get_logger()

router = APIRouter(tags=["operations"])
T = TypeVar("T")

#: A part that does not answer in this time is down.
CHECK_TIMEOUT_S = 5.0


@router.get("/livez", operation_id="livez", response_class=Response)
async def livez() -> Response:
    """That this process serves, whatever else works."""
    return Response("ok", media_type="text/plain")


@router.get("/health", operation_id="health", responses={503: {"model": Health, "description": "A part is down."}})
async def health(services: ServicesOf, response: Response) -> Health:
    """Whether every part works, and how many jobs there are."""
    details: dict[str, str] = {}
    counts, _, states = await asyncio.gather(
        _check("database", services.queue.counts(), details),
        _check("storage", services.storage.check(), details),
        _check("ray", services.cluster.models(), details),
    )
    if states is not None and (faults := _deployment_faults(states)):
        details["ray"] = faults
    if details:
        response.status_code = 503
    return Health(
        api="ok",
        database="down" if "database" in details else "ok",
        storage="down" if "storage" in details else "ok",
        ray="down" if "ray" in details else "ok",
        queues={name: _queue((counts or {}).get(name, {})) for name in MODELS},
        weights={name: _weights(spec, services.settings) for name, spec in MODELS.items()},
        details=details,
    )


@router.get("/metrics", operation_id="metrics", response_class=Response)
async def prometheus(services: ServicesOf) -> Response:
    """Prometheus text format."""
    depths = await services.queue.counts()
    async with services.engine.connect() as db:
        families = list(await metrics.collect(db, depths))
    registry = CollectorRegistry()
    registry.register(_Collected(families))
    return Response(generate_latest(registry), media_type="text/plain; version=0.0.4; charset=utf-8")


class _Collected(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


async def _check(part: str, work: Awaitable[T], details: dict[str, str]) -> T | None:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            return await work
    except Exception as error:
        # Whatever the reason, the answer is that this part is down. It is public, so the reason stays in the log.
        log.error("part_down", part=part, error=str(error))
        details[part] = type(error).__name__
        return None


def _weights(spec: ModelSpec, settings: Settings) -> Weights:
    if os.environ.get(spec.weights_variable):
        return "configured"
    # In a cluster the weights are on the nodes; each job's notes tell.
    return "random" if settings.environment == "local" else "unknown"


def _deployment_faults(states: Mapping[str, ModelState]) -> str:
    absent = [f"{name} is not deployed" for name in MODELS if name not in states]
    broken = [f"{name} is unhealthy" for name, state in states.items() if state.status == "UNHEALTHY"]
    return "; ".join(absent + broken)


def _queue(counts: Mapping[str, int]) -> QueueCounts:
    return QueueCounts(
        pending=counts.get(Status.QUEUED, 0),
        processing=counts.get(Status.PROCESSING, 0),
        completed=counts.get(Status.COMPLETED, 0),
        failed=counts.get(Status.FAILED, 0),
    )
