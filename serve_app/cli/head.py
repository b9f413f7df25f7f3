"""``video-api head``: the head of a cluster. Wires ``cluster`` and the service."""

import getpass
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from dotenv import load_dotenv

from serve_app import __version__
from serve_app.cli.machine import Config
from serve_app.cli.passed import ObjectStoreMb, PassEnv, model_variables, passed
from serve_app.cli.terminal import UsageProblem

if TYPE_CHECKING:
    from cluster.autoscaler.configuration import ClusterConfig
    from cluster.head.process import Application
    from cluster.isolation import RayUser
    from serve_app.settings import Environment, Settings

DEPLOY_TIMEOUT_S = 300
CONFIG = Path("configs/production.yaml")
CLUSTER = Path("configs/cluster.yaml")
#: Whom Ray's processes run as where nothing else is said, if there is such a user: the images have one.
RAY_USER = "ray"
#: Seconds between two looks at ``/health``.
WATCH_S = 5.0

ClusterYaml = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        help="Ray's cluster YAML: the types of nodes that VAST_API_KEY rents, or a provider of your own."
        " Default: configs/cluster.yaml, if it is there.",
        show_default=False,
    ),
]
RayFolder = Annotated[
    Path | None,
    typer.Option(
        help="Ray's folder; a short path. Default: /tmp/ray, or /var/lib/video-api/ray where another user has it.",
        show_default=False,
    ),
]
RayUserName = Annotated[
    str, typer.Option(help=f"Whom Ray's processes run as, if root starts it. Default: {RAY_USER}.", show_default=False)
]
Drain = Annotated[float, typer.Option(min=0, help="Seconds for requests in progress after SIGTERM.")]


def head(
    config: Config = CONFIG,
    cluster: ClusterYaml = None,
    temp_dir: RayFolder = None,
    object_store_mb: ObjectStoreMb = 100,
    drain: Drain = 10.0,
    ray_user: RayUserName = "",
    pass_env: PassEnv = None,
) -> None:
    """Be the head of a cluster until SIGTERM: Ray, the nodes' way in and the service. Configured by the environment."""
    import structlog

    from cluster.head.process import HeadOptions, run
    from cluster.isolation import close_launcher
    from cluster.process_one import run_as_init
    from deployments.logs import configure
    from serve_app import preflight
    from serve_app.cli.renting import renting
    from serve_app.cli.watch import watching
    from serve_app.serving.deploy import environment_of, read_config

    close_launcher()
    configure("head")
    wanted = read_config(config)
    settings = settings_of_cluster(environment_of(wanted))
    log = structlog.get_logger()
    for deprecated in settings.deprecations:
        log.warning("deprecated", what=deprecated)
    application = _application(settings, wanted, passed(pass_env or []))
    yaml = _cluster(cluster)
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
        cluster=yaml.path if yaml is not None and yaml.provided else None,
        renting=renting(settings, wanted, yaml),
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


def _cluster(path: Path | None) -> "ClusterConfig | None":
    """What ``--cluster`` names, or else the one that is there."""
    from cluster.autoscaler.configuration import BadClusterConfig, ClusterConfig

    path = path or (CLUSTER if CLUSTER.exists() else None)
    try:
        return None if path is None else ClusterConfig.read(path)
    except BadClusterConfig as error:
        raise UsageProblem(f"--cluster: {error}") from None


def _application(settings: "Settings", wanted: dict[str, Any], names: set[str]) -> "Application":
    """The service, as ``wanted`` (a Serve YAML) has it. ``names``: of more variables for it."""
    from cluster.head.process import Application, HeadError
    from serve_app.jobs import metrics
    from serve_app.jobs.database import migrate
    from serve_app.jobs.role import provide_role, shut_out
    from serve_app.serving.deploy import deploy
    from serve_app.settings import ConfigurationError

    def prepare() -> dict[str, str]:
        shut_out(settings.database_url)
        migrate(settings.database_url)
        # Another one at each start: what an earlier head's processes know opens nothing.
        return environment_of_ray(settings, provide_role(settings.database_url, secrets.token_hex(32)), names)

    async def deployed(dashboard: str) -> None:
        try:
            await deploy(wanted, dashboard, DEPLOY_TIMEOUT_S, settings.ray_token)
        except ConfigurationError as error:
            raise HeadError(str(error)) from error

    return Application(prepare=prepare, deploy=deployed, count=metrics.count, data_dir=settings.data_dir)


def _tell(part: str, reason: str | None) -> None:
    """A change that the watch has seen, in the head's log."""
    import structlog

    log = structlog.get_logger()
    if reason is None:
        log.info("part.up", part=part)
    else:
        log.error("part.down", part=part, reason=reason)


def environment_of_ray(settings: "Settings", database_url: str, names: set[str]) -> dict[str, str]:
    """What Ray's processes on the head get. What runs on Ray, from any node, can read it."""
    from cluster.environment import inherited

    # What the driver of PostgreSQL reads by itself; who its owner is, only where that is whom the service must be.
    of_driver = {name for name in os.environ if name.startswith("PG")}
    if database_url != settings.database_url:
        of_driver -= {"PGUSER", "PGPASSWORD", "PGPASSFILE", "PGSERVICE", "PGSERVICEFILE"}
    return {
        **inherited(os.environ, of_driver | names | model_variables()),
        **settings.for_service(database_url),
    }


def _ray_user(name: str) -> "RayUser | None":
    """The user for Ray's processes; None: this one. Says so, if that gives them more than they should have."""
    import structlog

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


def settings_of_cluster(environment: "Environment") -> "Settings":
    """From the environment and ``.env``. Raises :class:`UsageProblem` if one is wrong, or no database is named."""
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
