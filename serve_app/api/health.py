"""``/health`` and ``/metrics``: public, cheap, true."""

import asyncio
import os
from collections.abc import Awaitable, Mapping, Sequence
from typing import Annotated, TypeVar

import structlog
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from deployments.classes import model_of
from deployments.engine import ModelSpec
from deployments.registry import MODELS
from serve_app import redis
from serve_app.api.health_schemas import Health, ModelHealth, QueueCounts, Weights
from serve_app.jobs import fleet_metrics, metrics, tally
from serve_app.jobs.conditions import HOPELESS, Condition
from serve_app.jobs.job import AWAITING, Status
from serve_app.services import Services, ServicesOf
from serve_app.serving.state import ModelState
from serve_app.settings import Settings
from serve_app.shared import Shared

log = structlog.get_logger()

router = APIRouter(tags=["operations"])
T = TypeVar("T")

#: A part that does not answer in this time is down.
CHECK_TIMEOUT_S = 5.0
#: The same for sums over all that was ever rented, which take longer the more that is.
BILLS_S = 60.0


class Checks:
    """What ``/health`` and ``/metrics`` say. Whole answers are shared: they cost too much to be made for each who asks.
    Of Ray, :class:`ClusterState` keeps the answer itself."""

    def __init__(self, services: Services) -> None:
        self.health = Shared(self._health)
        self.metrics = Shared(self._metrics, CHECK_TIMEOUT_S)
        self._services = services
        self._redis_address = services.settings.ray_redis_address
        # A database that hangs can't be waited for, not even until what asks it is cancelled.
        self._counts = Shared(lambda: tally.counts(services.engine), CHECK_TIMEOUT_S)
        self._conditions = Shared(services.conditions.current, CHECK_TIMEOUT_S)
        self._bills = Shared(self._totals, CHECK_TIMEOUT_S, fresh_s=BILLS_S)

    async def _health(self) -> Response:
        details: dict[str, str] = {}
        counts, conditions, _, states, _ = await asyncio.gather(
            _check("database", self._counts.get(), details),
            _check("database", self._conditions.get(), details),
            _check("storage", self._services.storage.check(), details),
            _check("ray", self._services.cluster.models(), details),
            _check("redis", self._redis(), details),
        )
        served = {model: [name for name in states or () if model_of(name) == model] for model in MODELS}
        if states is not None and (absent := [f"{model} is not deployed" for model in MODELS if model not in states]):
            details["ray"] = "; ".join(absent)
        parts = {part: "down" if part in details else "ok" for part in ("database", "storage", "ray")}
        parts["redis"] = "down" if "redis" in details else "ok" if self._redis_address else "unused"
        status = 503 if details else 200
        models: Mapping[str, ModelHealth] = {}
        if states is not None:
            each = {
                name: _deployment(name, state, (conditions or {}).get(name), details) for name, state in states.items()
            }
            models = {model: _of_all([each[name] for name in served[model]]) for model in MODELS}
        health = Health(
            api="ok",
            **parts,
            models=models,
            queues={} if counts is None else {name: _queue(counts.get(name, {})) for name in MODELS},
            weights={name: _weights(spec, self._services.settings) for name, spec in MODELS.items()},
            details=details,
        )
        return Response(health.model_dump_json(), status, media_type="application/json")

    async def _redis(self) -> None:
        if self._redis_address:
            await redis.check(self._redis_address)

    async def _metrics(self) -> Response:
        depths = await self._counts.get()
        bills = await self._bills.get()
        async with self._services.engine.connect() as db:
            families = [*await metrics.collect(db, depths), *await fleet_metrics.collect(db), *bills]
        registry = CollectorRegistry()
        registry.register(_Collected(families))
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _totals(self) -> Sequence[Metric]:
        async with self._services.engine.connect() as db:
            return await fleet_metrics.totals(db)


async def _checks(request: Request, services: ServicesOf) -> Checks:
    """Those of this application."""
    state = request.app.state
    if not hasattr(state, "checks"):
        state.checks = Checks(services)
    checks: Checks = state.checks
    return checks


ChecksOf = Annotated[Checks, Depends(_checks)]


@router.get(
    "/livez",
    operation_id="livez",
    summary="Check this process",
    response_description="It serves: `ok`.",
    response_class=PlainTextResponse,
)
async def livez() -> Response:
    """That this process serves, whatever else works."""
    return Response("ok", media_type="text/plain")


@router.get(
    "/health",
    operation_id="health",
    summary="Check the service",
    response_description="Every part works.",
    response_model=Health,
    responses={503: {"model": Health, "description": "A part is down."}},
)
async def health(checks: ChecksOf) -> Response:
    """Whether every part works, and how many jobs there are. A model that does not start makes no part down."""
    return await checks.health.get()


@router.get(
    "/metrics",
    operation_id="metrics",
    summary="Read the metrics",
    response_description="All metrics, in the text format of Prometheus.",
    response_class=PlainTextResponse,
)
async def prometheus(checks: ChecksOf) -> Response:
    """Prometheus text format."""
    return await checks.metrics.get()


class _Collected(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


async def _check(part: str, answer: Awaitable[T], details: dict[str, str]) -> T | None:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            return await answer
    except Exception as error:
        # Whatever the reason, the answer is that this part is down. It is public, so the reason stays in the log.
        log.error("part_down", part=part, error=str(error))
        details[part] = type(error).__name__
        return None


#: Of a model with several deployments what its best one is, in this order.
_BEST_FIRST: Sequence[ModelHealth] = ("ok", "starting", "waiting", "down")


def _of_all(healths: Sequence[ModelHealth]) -> ModelHealth:
    return min(healths, key=_BEST_FIRST.index, default="down")


def _deployment(name: str, state: ModelState, condition: Condition | None, details: dict[str, str]) -> ModelHealth:
    """``condition`` is what the dispatcher remembers; Serve forgets why a replica did not start."""
    if state.running_replicas:
        if condition is not None:
            # It works; why no further machine comes for it is worth telling.
            details[name] = condition.message
        return "ok"
    trouble = condition or state.trouble
    if trouble is not None:
        details[name] = trouble.message
        return "down" if trouble.code in HOPELESS else "waiting"
    if state.status in ("UNHEALTHY", "DEPLOY_FAILED"):
        details[name] = state.message.partition("\n")[0] or f"{name} is unhealthy"
        return "down"
    return "starting" if state.starting_replicas else "ok"


def _weights(spec: ModelSpec, settings: Settings) -> Weights:
    if os.environ.get(spec.weights_variable):
        return "configured"
    # In a cluster the weights are on the nodes; each job's notes tell.
    return "random" if settings.environment == "local" else "unknown"


def _queue(counts: Mapping[str, int]) -> QueueCounts:
    return QueueCounts(
        pending=counts.get(Status.QUEUED, 0) + counts.get(AWAITING, 0),
        processing=counts.get(Status.PROCESSING, 0),
        completed=counts.get(Status.COMPLETED, 0),
        failed=counts.get(Status.FAILED, 0),
    )
