"""``video-api head``, ``node …`` and ``nodes``: a cluster across machines. Wires ``cluster`` and the service."""

import asyncio
import getpass
import os
import secrets
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import structlog
import typer
from dotenv import load_dotenv
from rich.table import Table

from cluster.ray_process import RAY_FOLDER
from serve_app import __version__
from serve_app.cli.display import moment
from serve_app.cli.terminal import Session, UsageProblem, sentence

if TYPE_CHECKING:
    from cluster.isolation import RayUser
    from cluster.mesh.registry import Node, PostgresRegistry
    from serve_app.settings import Environment, Settings

DEPLOY_TIMEOUT_S = 300
#: Whom Ray's processes run as where nothing else is said, if there is such a user: the images have one.
RAY_USER = "ray"
#: Seconds between two looks at ``/health``.
WATCH_S = 5.0

node_commands = typer.Typer(no_args_is_help=True, help="Invite, join and revoke GPU nodes.")

PassEnv = Annotated[
    list[str] | None,
    typer.Option("--pass-env", metavar="NAME", help="One more variable for what runs on Ray.", show_default=False),
]


def head(
    config: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Serve YAML.")] = Path(
        "configs/production.yaml"
    ),
    cluster: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Ray's cluster YAML; its provider starts nodes by demand."),
    ] = None,
    temp_dir: Annotated[
        Path | None,
        typer.Option(
            help="Ray's folder; a short path. Default: /tmp/ray, or /var/lib/video-api/ray where another user has it.",
            show_default=False,
        ),
    ] = None,
    object_store_mb: Annotated[int, typer.Option(min=75, help="Ray's object store.")] = 100,
    drain: Annotated[float, typer.Option(min=0, help="Seconds for requests in progress after SIGTERM.")] = 10.0,
    ray_user: Annotated[
        str,
        typer.Option(help=f"Whom Ray's processes run as, if root starts it. Default: {RAY_USER}.", show_default=False),
    ] = "",
    pass_env: PassEnv = None,
) -> None:
    """Be the head of a cluster until SIGTERM: Ray, the nodes' way in and the service. Configured by the environment."""
    from cluster.head.process import Application, HeadError, HeadOptions, run
    from cluster.isolation import close_launcher
    from cluster.process_one import run_as_init
    from deployments.logs import configure
    from serve_app import preflight
    from serve_app.cli.watch import watching
    from serve_app.jobs import metrics
    from serve_app.jobs.database import migrate
    from serve_app.jobs.role import provide_role, shut_out
    from serve_app.serving.deploy import deploy, environment_of, read_config
    from serve_app.settings import ConfigurationError

    close_launcher()
    configure("head")
    wanted = read_config(config)
    settings = _settings(environment_of(wanted))
    log = structlog.get_logger()
    for deprecated in settings.deprecations:
        log.warning("deprecated", what=deprecated)
    passed = _passed(pass_env or [])

    def prepare() -> dict[str, str]:
        shut_out(settings.database_url)
        migrate(settings.database_url)
        # Another one at each start: what an earlier head's processes know opens nothing.
        return _environment(settings, provide_role(settings.database_url, secrets.token_hex(32)), passed)

    async def deployed(dashboard: str) -> None:
        try:
            await deploy(wanted, dashboard, DEPLOY_TIMEOUT_S, settings.ray_token)
        except ConfigurationError as error:
            raise HeadError(str(error)) from error

    application = Application(prepare=prepare, deploy=deployed, count=metrics.count, data_dir=settings.data_dir)
    options = HeadOptions(
        database_url=settings.database_url,
        redis_url=settings.redis_url,
        http_port=settings.port,
        mesh_port=settings.mesh_port,
        mesh_secret=settings.mesh_secret,
        ray_token=settings.ray_token,
        version=__version__,
        object_store_bytes=object_store_mb << 20,
        temp_dir=temp_dir,
        cluster=cluster,
        drain_s=drain,
        user=_ray_user(ray_user),
    )

    def work() -> int:
        for fault in preflight.weights_faults(os.environ):
            log.error("weights.wrong", reason=f"on this machine, {fault}")
        # Not the end: the platform may start the database after us.
        if unreachable := preflight.database_fault(settings.database_url):
            log.error("database.unreachable", reason=unreachable)
        with watching(f"http://127.0.0.1:{settings.port}", _tell, WATCH_S):
            return run(application, options)

    raise typer.Exit(run_as_init(work))


def _tell(part: str, reason: str | None) -> None:
    """A change that the watch has seen, in the head's log."""
    log = structlog.get_logger()
    if reason is None:
        log.info("part.up", part=part)
    else:
        log.error("part.down", part=part, reason=reason)


@node_commands.command()
def join(
    hub: Annotated[str, typer.Option(metavar="HOST:PORT", help="The head's TCP port.", show_default=False)],
    token: Annotated[
        str, typer.Option(envvar="MESH_TOKEN", help="What `node token` printed. Good once.", show_default=False)
    ],
    name: Annotated[str, typer.Option(help="Shown by `nodes`.")] = socket.gethostname(),
    gpus: Annotated[
        int | None, typer.Option(min=0, help="GPUs that must be here. Default: as many as are.", show_default=False)
    ] = None,
    trust_gpus: Annotated[
        bool, typer.Option("--trust-gpus", help="Don't look for them: for tests without any.")
    ] = False,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="For label selectors; gpu-class is found out.", show_default=False),
    ] = None,
    cpus: Annotated[int | None, typer.Option(min=1, help="Default: as many as there are.", show_default=False)] = None,
    object_store_mb: Annotated[int, typer.Option(min=75, help="Ray's object store.")] = 1024,
    disk: Annotated[float, typer.Option(min=0, help="GiB that must be left on the disk.")] = 1.0,
    state: Annotated[Path, typer.Option(help="Folder of credentials and weights.")] = Path(".data"),
    temp_dir: Annotated[Path, typer.Option(help="Ray's folder; a short path.")] = RAY_FOLDER,
    patience: Annotated[float, typer.Option(min=1, help="Seconds to wait for a head that is gone.")] = 900.0,
    drain: Annotated[float, typer.Option(min=0, help="Seconds for jobs in progress after SIGTERM.")] = 30.0,
    end_command: Annotated[
        str, typer.Option(envvar="NODE_END_COMMAND", help="Run at the end, e.g. to give the machine back.")
    ] = "",
    pass_env: PassEnv = None,
) -> None:
    """Make this machine a node of a cluster, until SIGTERM. All it needs is a way out to the head's TCP port.

    <MODEL>_WEIGHTS in the environment names weights to fetch first: the URL of a manifest, or a model hub's owner/name.
    Exit codes: 0 told to end, 1 fault or head gone, 3 the head refused this node.
    """
    from cluster.isolation import close_launcher
    from cluster.mesh.dialer import HubAddress
    from cluster.node.process import NodeOptions, run
    from cluster.process_one import run_as_init
    from deployments.logs import configure
    from serve_app.preflight import weights_faults

    close_launcher()
    configure("node")
    for fault in weights_faults(os.environ):
        # Said here at once; the replica that needs it refuses to start, and the head tells that.
        structlog.get_logger().error("weights.wrong", reason=fault)
    try:
        address = HubAddress.parse(hub)
    except ValueError as error:
        raise UsageProblem(str(error)) from None
    options = NodeOptions(
        hub=address,
        token=token,
        state=state.absolute(),
        name=name,
        version=__version__,
        gpus=gpus,
        trust_gpus=trust_gpus,
        labels=_labels(label or []),
        cpus=cpus,
        object_store_bytes=object_store_mb << 20,
        temp_dir=temp_dir,
        disk_gib=disk,
        patience_s=patience,
        drain_s=drain,
        variables=frozenset(_passed(pass_env or []) | _model_variables()),
        end_command=end_command,
    )
    raise typer.Exit(run_as_init(partial(run, options)))


@node_commands.command()
def token(
    ctx: typer.Context,
    name: Annotated[str, typer.Option(help="Shown by `nodes` if the node gives no name.")] = "",
    ttl: Annotated[float, typer.Option(min=1, help="Minutes in which it must be used.")] = 60.0,
    hub: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT", help="How nodes reach the head. Default: Railway's TCP proxy.", show_default=False
        ),
    ] = "",
) -> None:
    """Invite one node: print the token, and the command to run on it. Needs the head's DATABASE_URL and secrets."""
    from cluster.mesh.identity import HubIdentity
    from cluster.mesh.registry import NoFreeSlot, invite

    settings = _settings_of_head()
    identity = HubIdentity.derived(settings.mesh_secret)

    async def work() -> tuple[int, str]:
        async with _registry(settings) as registry:
            slot, invitation = await invite(registry, identity, name, ttl * 60)
            return slot, invitation.token()

    try:
        slot, text = _run(work())
    except NoFreeSlot:
        raise UsageProblem("no free slot: revoke a node, or wait until a revoked one's slot is free") from None
    address = hub or _railway_proxy() or "HOST:PORT"
    session: Session = ctx.obj
    command = f"video-api node join --hub {address} --token {text}"
    session.show({"slot": slot, "token": text, "hub": address, "command": command}, command)


@node_commands.command()
def revoke(ctx: typer.Context, slot: Annotated[int, typer.Argument(help="See `video-api nodes`.")]) -> None:
    """Drop a node: its key is void within seconds, its connections end. Its slot is free again after ten minutes."""
    settings = _settings_of_head()

    async def work() -> bool:
        async with _registry(settings) as registry:
            return await registry.revoke(slot)

    if not _run(work()):
        raise UsageProblem(f"slot {slot} has no node")
    ctx.obj.show({"slot": slot, "revoked": True}, f"slot {slot} is revoked")


def nodes(ctx: typer.Context) -> None:
    """List the nodes: slot, state, when last seen, traffic since it joined."""
    settings = _settings_of_head()

    async def work() -> Sequence["Node"]:
        async with _registry(settings) as registry:
            return await registry.nodes()

    now = datetime.now(UTC)
    found = [_row(node, now) for node in _run(work())]
    ctx.obj.show(found, _table(found))


#: A node reports by being connected; twice the hub's interval without it means that it is away.
_AWAY_S = 40.0


def _row(node: "Node", now: datetime) -> dict[str, Any]:
    seen = node.last_seen_at
    if node.revoked_at is not None:
        state = "revoked"
    elif node.joined_at is None:
        state = "invited" if node.token_expires_at > now else "expired"
    else:
        state = "up" if seen is not None and (now - seen).total_seconds() < _AWAY_S else "away"
    return {
        "slot": node.slot,
        "name": node.name,
        "state": state,
        "last_seen_at": seen and seen.isoformat(),
        "bytes_in": node.bytes_in,
        "bytes_out": node.bytes_out,
    }


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("SLOT", "NAME", "STATE", "LAST SEEN", "FROM NODE", "TO NODE"):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        seen = moment(row["last_seen_at"]) if row["last_seen_at"] else "-"
        traffic = [f"{row[name] / 1e6:.1f} MB" for name in ("bytes_in", "bytes_out")]
        table.add_row(str(row["slot"]), row["name"] or "-", row["state"], seen, *traffic)
    return table


def _environment(settings: "Settings", database_url: str, passed: set[str]) -> dict[str, str]:
    """What Ray's processes on the head get. What runs on Ray, from any node, can read it."""
    from cluster.environment import inherited

    # What the driver of PostgreSQL reads by itself; who its owner is, only where that is whom the service must be.
    of_driver = {name for name in os.environ if name.startswith("PG")}
    if database_url != settings.database_url:
        of_driver -= {"PGUSER", "PGPASSWORD", "PGPASSFILE", "PGSERVICE", "PGSERVICEFILE"}
    return {
        **inherited(os.environ, of_driver | passed | _model_variables()),
        **settings.for_service(database_url),
    }


def _model_variables() -> set[str]:
    """What the models read, on the head and on nodes."""
    from deployments.registry import MODELS

    weights = {name for spec in MODELS.values() for name in (spec.weights_variable, *spec.weights_checks)}
    return {*weights, "VIDEO_API_DATA_DIR", "LOG_LEVEL"}


def _passed(names: Sequence[str]) -> set[str]:
    from cluster.environment import KEPT

    if refused := sorted(KEPT.intersection(names)):
        raise UsageProblem(f"--pass-env: {', '.join(refused)} stays in this process: any node can read what Ray's have")
    return set(names)


def _ray_user(name: str) -> "RayUser | None":
    """The user for Ray's processes; None: this one. Says so, if that gives them more than they should have."""
    from cluster.isolation import RayUser, Unsafe

    try:
        user = RayUser.find(name or RAY_USER) if name or os.geteuid() == 0 else None
    except Unsafe as error:
        raise UsageProblem(str(error)) from None
    log = structlog.get_logger()
    if user is not None:
        log.info("head.ray_user", name=user.name)
    elif name and name != getpass.getuser():
        raise UsageProblem(f"no user {name} on this machine: useradd --system {name}")
    else:
        hint = f"useradd --system {RAY_USER}" if os.geteuid() == 0 else "start it as root, with such a user"
        log.warning("head.ray_shares_user", hint=f"{hint}: then what runs on Ray can't touch this process")
    dotenv = Path(".env")
    if dotenv.exists() and dotenv.stat().st_mode & 0o077:
        log.warning("head.open_file", path=str(dotenv.absolute()), hint="chmod 600: what runs on Ray can read it")
    return user


def _settings(environment: "Environment") -> "Settings":
    from serve_app.preflight import url_fault
    from serve_app.settings import ConfigurationError, Settings

    load_dotenv(".env")
    try:
        settings = Settings.load(environment)
    except ConfigurationError as error:
        raise UsageProblem(str(error)) from None
    if not settings.database_url:
        raise UsageProblem("set DATABASE_URL: a cluster has no database of its own")
    if fault := url_fault(settings.database_url):
        raise UsageProblem(fault)
    return settings


def _settings_of_head() -> "Settings":
    """For commands beside a running head, which work on its database with its secrets."""
    from serve_app.preflight import database_fault

    try:
        settings = _settings("production")
        if fault := database_fault(settings.database_url):
            raise UsageProblem(fault)
    except UsageProblem as problem:
        where = "This command is for the shell of the head, where its variables are set (on Railway: `railway ssh`)."
        raise UsageProblem(f"{sentence(str(problem))} {where}") from None
    return settings


@asynccontextmanager
async def _registry(settings: "Settings") -> AsyncIterator["PostgresRegistry"]:
    from sqlalchemy.exc import OperationalError
    from sqlalchemy.ext.asyncio import create_async_engine

    from cluster.mesh.registry import PostgresRegistry

    engine = create_async_engine(settings.database_url)
    try:
        yield PostgresRegistry(engine)
    except OperationalError as error:
        raise UsageProblem(f"DATABASE_URL: {error.orig}") from None
    finally:
        await engine.dispose()


def _run(work: Any) -> Any:
    return asyncio.run(work)


def _labels(pairs: Sequence[str]) -> dict[str, str]:
    labels = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise UsageProblem(f"{pair!r} is not KEY=VALUE")
        labels[key] = value
    return labels


def _railway_proxy() -> str:
    host, port = os.environ.get("RAILWAY_TCP_PROXY_DOMAIN"), os.environ.get("RAILWAY_TCP_PROXY_PORT")
    return f"{host}:{port}" if host and port else ""
