"""The head: one process tree that holds the cluster together.

::

    video-api head ── lock (PostgreSQL) · hub of the mesh · fleet of rented nodes   this process
      └─ ray start --head --block ── GCS, raylet, dashboard, Serve, api, dispatcher

Parts start in that order and stop in the reverse one. A part that is lost ends the whole, and the platform's restart
policy begins anew: with ``REDIS_URL`` set, GPU nodes and their replicas live through that. SIGUSR1 logs the counters.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import structlog
import uvloop
from sqlalchemy.ext.asyncio import create_async_engine

from cluster.autoscaler.configuration import BY_HAND, Autoscaling
from cluster.briefing import Briefing
from cluster.environment import ray_environment
from cluster.ghosts import lay_revoked
from cluster.head.leader import LeadershipLost, leading
from cluster.head.renting import Renting, RentingOptions
from cluster.head.standby import Standby
from cluster.isolation import RayUser, Unsafe, own
from cluster.mesh.counters import Stats
from cluster.mesh.hub import Hub
from cluster.mesh.identity import HubIdentity
from cluster.mesh.plan import HEAD
from cluster.mesh.registry import CountWriter, PostgresRegistry
from cluster.ray_process import RAY_FOLDER, RayProcess, slot_flags

log = structlog.get_logger()

#: Ray's least is 75 MiB, and nothing large passes through it: media goes by URL. On a small ``/dev/shm`` (64 MB in a
#: container by default) Ray puts it into its temporary folder instead.
OBJECT_STORE_BYTES = 100 * 1024**2
#: Seconds that Ray gets to drain after SIGTERM.
DRAIN_S = 10.0
#: Serve brings its controller and the API back by itself; it gets so long. How often it is asked.
SILENCE_S = 120.0
ASK_S = 5.0
#: How long the database may take, in libpq's words: to be reached, for a statement, and to say that it is there at all.
DATABASE_LIMITS = {
    "connect_timeout": 5,
    "options": "-c statement_timeout=10000 -c lock_timeout=5000",
    "keepalives_idle": 5,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15000,
}
RAY_FOLDER_OF_USER = Path("/var/lib/video-api/ray")


class HeadError(Exception):
    """The head can't begin or go on; the message says why."""


class PartLost(HeadError):
    """Something that the head cannot be without has ended."""


@dataclass(frozen=True, kw_only=True)
class Application:
    """What runs on the cluster, as far as its head has to know."""

    #: Prepares the database and returns the variables that its processes get, all of them; blocks. Whatever runs on
    #: Ray, from any node, can read those.
    prepare: Callable[[], Mapping[str, str]]
    #: Deploys through the dashboard at that URL and returns when all of it runs. Raises :class:`HeadError` if it can't.
    deploy: Callable[[str], Awaitable[None]]
    #: Adds to the counters behind ``/metrics``, within the caller's transaction.
    count: CountWriter
    #: Where it keeps files.
    data_dir: Path


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """Addresses, secrets, sizes and places."""

    #: Of its owner; asyncpg's or psycopg's, as SQLAlchemy writes it.
    database_url: str = field(repr=False)
    #: Where Ray's GCS keeps its state; empty: it loses it with the head.
    redis_url: str = field(default="", repr=False)
    #: Where the API listens.
    http_port: int
    #: Where nodes come in.
    mesh_port: int
    #: What the certificate for nodes follows from.
    mesh_secret: bytes = field(repr=False)
    ray_token: str = field(repr=False)
    #: Of this repository; a node needs the same.
    version: str
    object_store_bytes: int = OBJECT_STORE_BYTES
    #: Ray's folder; None: :meth:`ray_folder` says.
    temp_dir: Path | None = None
    #: Ray's cluster YAML, with a provider of nodes in it; None: nodes join by hand, or are rented.
    cluster: Path | None = None
    #: What nodes are rented by.
    renting: RentingOptions | None = None
    drain_s: float = DRAIN_S
    #: Whom Ray's processes run as; None: as this one.
    user: RayUser | None = None

    def ray_folder(self) -> Path:
        """Where another user has it, root alone may write to the folder above; else it is Ray's own default."""
        return self.temp_dir or (RAY_FOLDER if self.user is None else RAY_FOLDER_OF_USER)


def run(application: Application, options: HeadOptions) -> int:
    """Be the head until SIGTERM or SIGINT. The exit status: 0 after a signal, 1 if a part was lost."""

    async def main() -> int:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        try:
            await Head(application, options).run(stop)
        except (HeadError, LeadershipLost, Unsafe) as error:
            log.error("head.failed", reason=str(error))
            return 1
        return 0

    return uvloop.run(main())


class Head:
    """Waits until it leads, then has everything that a head consists of; :meth:`run` is all of its life."""

    def __init__(self, application: Application, options: HeadOptions) -> None:
        self._application = application
        self._options = options

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop``. Raises :class:`HeadError`, LeadershipLost or Unsafe, with everything ended."""
        options = self._options
        if options.user is not None:
            options.user.check(options.http_port)
        own(self._application.data_dir, options.user, whole=True)
        stopping = asyncio.create_task(stop.wait())
        async with AsyncExitStack() as parts:
            parts.callback(stopping.cancel)
            async with Standby(options.http_port) as standby:
                leadership = leading(options.database_url, on_wait=lambda asked: setattr(standby, "fit", asked))
                entering = asyncio.create_task(parts.enter_async_context(leadership))
                if await _first(stopping, entering) is stopping:
                    entering.cancel()
                    await asyncio.gather(entering, return_exceptions=True)
                    return
                lost = entering.result().lost
            variables = await asyncio.to_thread(self._application.prepare)
            engine = create_async_engine(
                options.database_url,
                pool_size=2,
                pool_pre_ping=True,
                pool_timeout=5,
                hide_parameters=True,
                connect_args=DATABASE_LIMITS,
            )
            parts.push_async_callback(engine.dispose)
            identity = HubIdentity.derived(options.mesh_secret)
            registry = PostgresRegistry(engine, count=self._application.count)
            by_hand = "" if options.renting is None else BY_HAND
            briefing = Briefing.of_this_head(options.ray_token, options.version, by_hand)
            renting = None if options.renting is None else Renting(options.renting, engine, registry, identity)
            hub = Hub(
                identity,
                registry,
                port=options.mesh_port,
                fixed_answers={HEAD.briefing: briefing.text()},
                depot=None if renting is None else renting.depot,
                on_report=None if renting is None else renting.hear,
            )
            await parts.enter_async_context(hub)
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, lambda: _tell(hub.stats()))
            autoscaling = Autoscaling() if options.cluster is None else Autoscaling.by(options.cluster)
            deposed: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            parts.callback(deposed.cancel)
            if renting is not None:
                parts.push_async_callback(renting.close)
                deposed = await renting.start(hub, options.user)
                autoscaling = renting.autoscaling
            ray = await self._start_ray(variables, autoscaling)
            parts.push_async_callback(ray.stop)
            sweeping = asyncio.create_task(lay_revoked(registry, briefing.address, briefing.token))
            parts.callback(sweeping.cancel)
            dashboard = f"http://{HEAD.address}:{HEAD.dashboard}"
            deploying = asyncio.ensure_future(self._application.deploy(dashboard))
            parts.callback(deploying.cancel)
            first = await _first(stopping, lost, hub.failed, ray.exited, deposed, deploying)
            if first is deploying:
                deploying.result()
                log.info("head.up", mesh_port=hub.port, http_port=options.http_port, dashboard=dashboard)
                silent = asyncio.create_task(_silence(options.http_port))
                parts.callback(silent.cancel)
                first = await _first(stopping, lost, hub.failed, ray.exited, deposed, silent)
                if first is silent:
                    raise PartLost(f"nothing has answered on port {options.http_port} for {SILENCE_S:.0f} s")
            if first is lost:
                lost.result()
            if first is deposed:
                raise PartLost("another head rents machines now") from deposed.exception()
            if first is hub.failed:
                raise PartLost("the mesh's hub has failed") from hub.failed.exception()
            if first is ray.exited:
                raise PartLost(f"Ray ended with status {ray.exited.result()}")
            log.info("head.stops", drain_s=options.drain_s)

    async def _start_ray(self, variables: Mapping[str, str], autoscaling: Autoscaling) -> RayProcess:
        options = self._options
        flags = [
            "--head",
            *slot_flags(HEAD),
            f"--object-store-memory={options.object_store_bytes}",
            # What runs here is placed by the resource that only a head has, and asks for no CPU: a replica of a model
            # must never land here.
            "--num-cpus=0",
            "--num-gpus=0",
            *autoscaling.flags,
            *redis_flags(options.redis_url),
        ]
        environment = {
            **variables,
            **ray_environment(options.ray_token, options.drain_s),
            **autoscaling.environment,
            **redis_environment(options.redis_url),
            "AUTOSCALER_METRIC_PORT": str(HEAD.autoscaler_metrics),
            "DASHBOARD_METRIC_PORT": str(HEAD.dashboard_metrics),
        }
        return await RayProcess.start(
            flags, environment, temp_dir=options.ray_folder(), drain_s=options.drain_s, user=options.user
        )


def redis_environment(url: str) -> dict[str, str]:
    """The state of Ray's GCS outside of this head, so that a new one goes on with it. Empty without an URL."""
    if not url:
        return {}
    parts = urlsplit(url)
    scheme = "rediss://" if parts.scheme == "rediss" else ""
    return {
        "RAY_REDIS_ADDRESS": f"{scheme}{parts.hostname}:{parts.port or 6379}",
        "RAY_external_storage_namespace": "video-api",
    }


def redis_flags(url: str) -> list[str]:
    """Ray takes Redis's password as an argument only; on the head nobody else can read it."""
    parts = urlsplit(url)
    user = [f"--redis-username={parts.username}"] if parts.username else []
    return user + ([f"--redis-password={parts.password}"] if parts.password else [])


def _tell(stats: Stats) -> None:
    """The hub's counters, in the log."""
    nodes = [asdict(node) for node in stats.nodes]
    log.info("mesh.stats", **{**vars(stats), "refused": dict(stats.refused), "nodes": nodes})


async def _silence(port: int, clock: Callable[[], float] = time.monotonic) -> None:
    """Returns when the API has not answered for too long. No platform asks once a deployment is healthy."""
    heard = clock()
    async with httpx.AsyncClient(timeout=10, trust_env=False) as api:
        while clock() - heard < SILENCE_S:
            await asyncio.sleep(ASK_S)
            # Not /health: a database that is away is no reason to start anew. Not a byte of the body: whoever runs code
            # on Ray may answer there, without end.
            with contextlib.suppress(httpx.HTTPError):
                async with api.stream("GET", f"http://127.0.0.1:{port}/livez") as answer:
                    if answer.is_success:
                        heard = clock()


async def _first(*tasks: "asyncio.Future[Any]") -> "asyncio.Future[Any]":
    """The one of them that is done; the earliest in the list if several are."""
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    return next(task for task in tasks if task.done())
