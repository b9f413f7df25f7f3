"""A Ray cluster of this machine alone: on loopback, with a token, its files in one folder, gone without a trace."""

import os
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from serve_app.local.postgres_guard import wait_until_gone
from serve_app.settings import ConfigurationError

if TYPE_CHECKING:
    import psutil

#: Logical CPUs, whatever the machine has. The replicas of ``configs/local.yaml`` ask for one in all; a second lets Ray
#: start two processes at a time.
CPUS = 2
OBJECT_STORE_BYTES = 150 * 1024**2
#: Seconds for processes that were killed to be gone.
END_S = 10


@contextmanager
def running(folder: Path, token: str) -> Iterator[str]:
    """The URL of the dashboard. ``folder`` is for this cluster alone, and has a short path: Ray puts Unix sockets below
    it, whose paths are limited to 107 characters.

    Raises:
        ConfigurationError: Ray does not start.
    """
    # Left unset, Ray would write a token of its own into the home directory.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Workers start when they are needed, not one per CPU in advance: on two cores that costs seconds.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    # Of the output of each process. Without a bound, who makes it talk fills the disk.
    os.environ.setdefault("RAY_ROTATION_MAX_BYTES", "50000000")
    os.environ.setdefault("RAY_ROTATION_BACKUP_COUNT", "2")
    import psutil

    strangers = frozenset(psutil.Process().children(recursive=True))
    with (
        # Temporary files of all that Ray starts: who is killed leaves them, and they go with the folder.
        exported("TMPDIR", str(folder)),
        # Ray replaces a loopback address that it is given by one that others reach, unless it is told not to; on a Mac
        # it is by default. That also spares a search for the way out, by a connection to 8.8.8.8. It reads this when it
        # is first imported: in a process that has done so, its address is the machine's.
        exported("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0"),
    ):
        try:
            yield f"http://{_started(folder, strangers)}"
        finally:
            _end(strangers)


def _started(folder: Path, strangers: Set["psutil.Process"]) -> str:
    """Host and port of the dashboard."""
    # Ray has no type of its own for what goes wrong.
    try:
        return _start(folder)
    except Exception:
        # It gives its processes 30 s, which on a busy machine are too few; the second time what they read is in memory.
        _end(strangers)
    try:
        return _start(folder)
    except Exception as error:
        raise ConfigurationError(f"Ray does not start: {_last_line(error)}") from error


def _start(folder: Path) -> str:
    import ray

    context = ray.init(
        address="local",
        num_cpus=CPUS,
        object_store_memory=OBJECT_STORE_BYTES,
        dashboard_host="127.0.0.1",
        include_dashboard=True,
        log_to_driver=False,
        logging_level="WARNING",
        # Ray opens its folder to everybody; the one above stays shut.
        _temp_dir=str(folder / "r"),
    )
    return str(context.dashboard_url)


def _end(strangers: Set["psutil.Process"]) -> None:
    """End every process of the cluster. Jobs in progress are taken up again at the next start, so there is no reason to
    let Serve wait for them."""
    import psutil
    import ray

    family = set(psutil.Process().children(recursive=True)) - strangers
    ray.shutdown(wait_for_processes=True)
    # It waits for its children, not for theirs: the dashboard's write into the folder that is about to go.
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    wait_until_gone(family, END_S)


def _last_line(error: Exception) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


@contextmanager
def exported(name: str, value: str) -> Iterator[None]:
    """A variable in the environment that children get, while the body runs."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
