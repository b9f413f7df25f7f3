"""Ray on this machine: one ``ray start --block`` as a child, with what both ends of the cluster have to agree on."""

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Self

import structlog

log = structlog.get_logger()

#: A node may be cut off for a minute and must not be given up. Measured together on a mesh that was cut.
#: The price is that a node which is really gone counts as alive for minutes.
TUNED = {
    "RAY_health_check_initial_delay_ms": "10000",
    "RAY_health_check_period_ms": "5000",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "24",
    # Nodes wait so long for a head that restarts.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
    "RAY_gcs_server_request_timeout_seconds": "120",
    # A call whose connection was reset waits so long for the news that the actor is dead, before it fails with
    # ActorUnavailableError. Serve takes that error of a health check for the replica's death and kills it at once; so
    # it has to come later than ``health_check_timeout_s`` (60 s in configs/production.yaml), of which three may pass.
    "RAY_timeout_ms_task_wait_for_death_info": "75000",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Workers start when they are needed, not one per CPU in advance.
    "RAY_prestart_worker_first_driver": "0",
}
#: Beyond its own drain, the time that ``ray start`` takes to end its processes.
STOP_GRACE_S = 20.0

_PR_SET_PDEATHSIG = 1


def environment(token: str, drain_s: float) -> dict[str, str]:
    """What Ray's processes get beside the environment of this one.

    The token's mode is said explicitly: left unset, Ray turns authentication on or off by what it finds at home.
    """
    return {
        **TUNED,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": f"{drain_s:g}",
    }


class RayProcess:
    """A running ``ray start --block``. It ends when any of Ray's processes on this machine ends, and they with it."""

    def __init__(self, process: asyncio.subprocess.Process, drain_s: float) -> None:
        self._process = process
        self._drain_s = drain_s
        #: Done with the exit status once Ray has ended.
        self.exited: asyncio.Task[int] = asyncio.create_task(process.wait())

    @classmethod
    async def start(cls, flags: Sequence[str], extra: Mapping[str, str], drain_s: float) -> Self:
        """Start it. ``extra`` is added to the environment. Its messages go to our standard error."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *flags),
            env={**os.environ, **extra},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            # A Ctrl-C at the terminal is for us; we end Ray in our order.
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        log.info("ray.started", pid=process.pid)
        return cls(process, drain_s)

    async def stop(self) -> None:
        """Drain, then end all processes. Returns when they are gone."""
        if not self.exited.done():
            self._process.terminate()
        done, _ = await asyncio.wait({self.exited}, timeout=self._drain_s + STOP_GRACE_S)
        if not done:
            log.error("ray.killed", pid=self._process.pid)
            # Its session: the children that it did not get to end.
            os.killpg(self._process.pid, signal.SIGKILL)
            await self.exited


def _end_with_parent() -> None:
    """Runs in the child: SIGTERM when the parent dies, however it dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
