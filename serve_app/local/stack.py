"""The whole service on one machine: PostgreSQL from a pip package, a local Ray cluster, the Serve application.

The engine is that of production; only the sizes differ.
"""

import asyncio
import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from dotenv import load_dotenv

from serve_app import preflight
from serve_app.local import postgres, ray_cluster
from serve_app.local.ray_cluster import exported
from serve_app.serving.deploy import deploy, read_config
from serve_app.settings import ConfigurationError, Settings

DEPLOY_TIMEOUT_S = 180
#: What the names of our temporary folders begin with.
SCRATCH = "video-api-"


@dataclass(frozen=True, kw_only=True)
class Endpoints:
    """Where a running stack can be reached."""

    api_url: str
    api_key: str
    dashboard_url: str
    #: The dashboard asks for it: without it every user of this machine could run code as this one.
    dashboard_token: str
    #: For workers outside the cluster that report to ``/webhook/complete``.
    webhook_secret: str


@contextmanager
def running(config: Path) -> Iterator[Endpoints]:
    """Start everything that ``config`` (a Serve YAML) needs, wait until it answers, and end it all afterwards.

    Raises:
        ConfigurationError: a variable names what is not there, another stack uses the data directory or a port, or the
            application does not come up.
    """
    load_dotenv(".env")
    settings = Settings.load("local")
    preflight.require(settings)
    with ExitStack() as stack:
        with _private_files(settings.data_dir):
            stack.enter_context(_sole_user(settings.data_dir))
            _require_free(settings.port)
            if not settings.database_url:
                url = stack.enter_context(postgres.running(settings.data_dir))
                stack.enter_context(exported("DATABASE_URL", url))
            # Replicas inherit the environment: they must agree with us, wherever they run.
            stack.enter_context(exported("VIDEO_API_DATA_DIR", str(settings.data_dir)))
            scratch = stack.enter_context(_scratch(settings.data_dir))
            dashboard_url = stack.enter_context(ray_cluster.running(scratch, settings.ray_token))
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
def _private_files(data_dir: Path) -> Iterator[None]:
    """What the processes write that are started meanwhile is for this user alone: inputs, videos, secrets."""
    before = os.umask(0o077)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        # One that an earlier version has made. As root others have to pass, see ``embedded``.
        data_dir.chmod(0o711 if os.geteuid() == 0 else 0o700)
        yield
    finally:
        os.umask(before)


@contextmanager
def _sole_user(data_dir: Path) -> Iterator[None]:
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
def _scratch(data_dir: Path) -> Iterator[Path]:
    """A temporary folder. What a service that was killed has left is removed first; nobody else uses its data."""
    note = data_dir / "scratch"
    if note.exists() and Path(note.read_text()).name.startswith(SCRATCH):
        shutil.rmtree(note.read_text(), ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=SCRATCH, ignore_cleanup_errors=True) as folder:
        note.write_text(folder)
        try:
            yield Path(folder)
        finally:
            note.unlink()


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        # As a server does, which may take a port whose last connections are still fading.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise ConfigurationError(f"port {port} is in use; set PORT to another") from None
