"""The Serve application: which deployments there are.

``serve deploy`` names :func:`build` as ``import_path``. Deployments: ``api`` (HTTP ingress), ``dispatcher`` (jobs) and
one per model of the registry and class of GPU memory, which the YAML gives GPUs and limits.
"""

import asyncio
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Self

import structlog
from pydantic import BaseModel, ConfigDict, Field, model_validator
from ray import serve
from ray.exceptions import ActorDiedError, RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments import logs
from deployments.classes import CLASSES, Deployment, deployments
from deployments.contract import SLOTS, Ability, Report, Task, Verdict
from deployments.registry import MODELS
from deployments.replica import DISPATCHER, Replica
from deployments.sandbox.process import layers
from deployments.sandbox.report import log_layers
from deployments.sandbox.secrecy import close_to_others
from serve_app import preflight
from serve_app.api.asgi import create_asgi
from serve_app.api.server import DRAIN_S, HttpServer
from serve_app.jobs.database import migrate
from serve_app.jobs.fleet_size import CALLS_PER_REPLICA, Capacity
from serve_app.jobs.readiness import ModelHealth
from serve_app.jobs.workers import WorkerDied, WorkerUnreachable
from serve_app.local.postgres import with_database
from serve_app.outbound.pool import WorkerPool
from serve_app.services import build_ring
from serve_app.serving.scaling import POLICY
from serve_app.serving.state import ServeState
from serve_app.settings import Environment, Settings
from serve_app.wiring import build_dispatcher, build_services

log = structlog.get_logger()

#: The head runs what is ours; a GPU node must never be asked to. ``ray start --head`` gives itself this resource.
ON_HEAD = {"node:__internal_head__": 0.001}
#: Seconds without work after which a replica leaves, where nothing else is said.
MAX_IDLE_S = 300.0
#: Of a process, for what blocks.
THREADS = 24


class AppArgs(BaseModel):
    """``args`` in the Serve YAML. Secrets and addresses of others come from the environment."""

    model_config = ConfigDict(extra="forbid")

    environment: Environment = "local"
    #: Where the API listens, on ``PORT``.
    host: str = "127.0.0.1"
    #: By model the classes of GPU memory, in GiB, that have a deployment of it each; none: one deployment, on any node.
    classes: Mapping[str, Sequence[int]] = Field(default_factory=dict)
    #: Most replicas by deployment; 1 where nothing is said.
    max_replicas: Mapping[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    #: Seconds without work after which a replica leaves, by deployment; MAX_IDLE_SECONDS goes before.
    max_idle: Mapping[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)

    @property
    def deployments(self) -> Sequence[Deployment]:
        return deployments(self.classes)

    @model_validator(mode="after")
    def _known(self) -> Self:
        _require_known("model", self.classes, MODELS)
        _require_known("class", [gib for each in self.classes.values() for gib in each], CLASSES)
        names = [each.name for each in self.deployments]
        for given in (self.max_replicas, self.max_idle):
            _require_known("deployment", given, names)
        return self


def _require_known(what: str, given: Iterable[object], known: Collection[object]) -> None:
    if unknown := set(given) - set(known):
        raise ValueError(
            f"no such {what}: {', '.join(sorted(map(str, unknown)))}; there are {', '.join(map(str, known))}"
        )


class Api:
    """HTTP, on a port of its own (``api/server.py`` says why). Stateless; scale it by ``num_replicas``."""

    # Serve awaits it, which Python's types do not know.
    async def __init__(  # type: ignore[misc]
        self, environment: Environment, host: str, served: Sequence[Deployment], dispatcher: DeploymentHandle
    ) -> None:
        # The dispatcher is an argument only to make it part of the application: they talk through PostgreSQL.
        del dispatcher
        logs.configure("api")
        close_to_others(await asyncio.to_thread(layers))
        # Media of the local store are for this user alone, whoever has started Ray.
        os.umask(0o077)
        # Files of the local store are read, written and copied in threads; Serve's loop has five.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))
        settings = await asyncio.to_thread(lambda: with_database(Settings.load(environment)))
        services = build_services(settings, ServeState(served))
        self._services = services
        ring = build_ring(services)
        self._ring = asyncio.create_task(ring.run())
        app = create_asgi(services, ring)
        self._server = HttpServer(app, host, settings.port, base_url=settings.base_url)
        await self._server.start()

    async def __del__(self) -> None:
        """Serve awaits this before it ends the replica."""
        # First: streams and waits would go on for as long as the server waits for requests in progress.
        await self._services.feed.aclose()
        await self._server.stop()
        self._ring.cancel()
        await asyncio.wait({self._ring})
        await self._services.aclose()

    async def check_health(self) -> None:
        """Called by Serve in the event loop that serves: when that stands still, so does this. Raises RuntimeError."""
        self._server.check()
        if self._ring.done():
            self._ring.result()


class DispatcherDeployment:
    """Runs the dispatcher's loops in this replica and takes the workers' reports. Serve awaits the constructor."""

    # Serve awaits it, which Python's types do not know.
    async def __init__(  # type: ignore[misc]
        self, environment: Environment, served: Sequence[Deployment], handles: Mapping[str, DeploymentHandle]
    ) -> None:
        logs.configure("dispatcher")
        close_to_others(await asyncio.to_thread(log_layers))
        os.umask(0o077)
        # Copies to and from the store and waits for decoders each hold one; Serve's loop has five.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))
        settings = await asyncio.to_thread(lambda: with_database(Settings.load(environment)))
        await asyncio.to_thread(migrate, settings.database_url)
        cluster = ServeState(served)
        self._outbound = WorkerPool(settings.allow_networks)
        await self._outbound.start()
        self._dispatcher = build_dispatcher(settings, ServeWorkers(handles, cluster), cluster, self._outbound, served)
        self._loops = asyncio.create_task(self._dispatcher.run())

    async def __del__(self) -> None:
        """Serve awaits this before it ends the replica."""
        self._loops.cancel()
        await asyncio.wait({self._loops})
        await self._outbound.aclose()

    async def report(self, report: Report) -> Verdict:
        return await self._dispatcher.report(report)

    async def renew(self, task: Task) -> Task:
        return await self._dispatcher.renew(task)

    async def able(self, ability: Ability) -> None:
        await self._dispatcher.able(ability)

    async def check_health(self) -> None:
        """Raises if the loops have ended: then this process does nothing useful any more."""
        if self._loops.done():
            self._loops.result()


class ServeWorkers:
    """Model deployments behind their Serve handles. Calls that wait in a handle are what Serve scales on."""

    def __init__(self, handles: Mapping[str, DeploymentHandle], cluster: ServeState) -> None:
        self._handles = handles
        self._cluster = cluster

    async def capacities(self) -> Mapping[str, Capacity]:
        states = await self._cluster.models()
        return {
            name: Capacity(running=state.running_replicas, most=state.max_replicas, slots=state.slots)
            for name, state in states.items()
        }

    async def health(self) -> Mapping[str, ModelHealth]:
        states = await self._cluster.models()
        return {
            name: ModelHealth(state.running_replicas > 0, state.trouble, state.live) for name, state in states.items()
        }

    async def generate(self, task: Task) -> None:
        response = self._handles[task.deployment or task.model].generate.remote(task)
        try:
            await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except ActorDiedError as error:
            raise WorkerDied(str(error)) from error
        except (RayError, RayServeException) as error:
            raise WorkerUnreachable(f"{type(error).__name__}: {error}") from error


def build(args: AppArgs) -> serve.Application:
    """The application. Checks the configuration, so that a bad one fails the deploy and not the first request."""
    settings = Settings.load(args.environment)
    local = args.environment == "local"
    if local:
        # Replicas run on this machine, so what is wrong with their weights can be told now.
        preflight.require(settings)
    handles = {
        (name := each.name): serve.deployment(
            Replica,
            name=name,
            max_ongoing_requests=SLOTS,
            graceful_shutdown_timeout_s=MODELS[each.model].timeout_s,
            health_check_period_s=10,
            autoscaling_config={
                "min_replicas": 0,
                "initial_replicas": 0,
                "max_replicas": args.max_replicas.get(name, 1),
                "target_ongoing_requests": CALLS_PER_REPLICA,
                "upscale_delay_s": 0,
                "downscale_delay_s": (idle_s := settings.max_idle_seconds or args.max_idle.get(name, MAX_IDLE_S)),
                "downscale_to_zero_delay_s": idle_s,
                "policy": {"policy_function": POLICY},
            },
        ).bind(each.model, deployment=name, allow_random_weights=local or settings.allow_random_weights)
        for each in args.deployments
    }
    dispatcher = serve.deployment(
        DispatcherDeployment,
        name=DISPATCHER,
        num_replicas=1,
        max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": 0, "resources": ON_HEAD},
    ).bind(args.environment, args.deployments, handles)
    api = serve.deployment(
        Api,
        name="api",
        num_replicas=1,
        graceful_shutdown_timeout_s=DRAIN_S + 5,
        ray_actor_options={"num_cpus": 0, "resources": ON_HEAD},
    )
    return api.bind(args.environment, args.host, args.deployments, dispatcher)
