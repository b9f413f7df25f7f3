"""Ray on this machine: one ``ray start --block`` as a child."""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Self

import structlog

from cluster.isolation import RayUser, begin_child, own
from cluster.mesh.plan import HeadSlot, Slot

log = structlog.get_logger()

#: Beyond its own drain, the time that ``ray start`` takes to end its processes.
STOP_GRACE_S = 20.0
#: Ray puts Unix sockets below it, whose paths are limited to 107 characters.
RAY_FOLDER = Path("/tmp/ray")  # noqa: S108 - Ray's own default


def slot_flags(slot: Slot) -> list[str]:
    """What ``ray start`` has to be given so that it stays within the slot."""
    flags = [
        f"--node-ip-address={slot.address}",
        f"--node-manager-port={slot.node_manager}",
        f"--object-manager-port={slot.object_manager}",
        f"--dashboard-agent-listen-port={slot.dashboard_agent_listen}",
        f"--dashboard-agent-grpc-port={slot.dashboard_agent_grpc}",
        f"--runtime-env-agent-port={slot.runtime_env_agent}",
        f"--metrics-export-port={slot.metrics_export}",
        f"--min-worker-port={slot.workers[0]}",
        f"--max-worker-port={slot.workers[-1]}",
    ]
    if isinstance(slot, HeadSlot):
        flags += [
            f"--port={slot.gcs}",
            f"--dashboard-host={slot.address}",
            f"--dashboard-port={slot.dashboard}",
            f"--ray-client-server-port={slot.client_server}",
        ]
    return flags


class RayProcess:
    """A running ``ray start --block``. It ends when any of Ray's processes on this machine ends, and they with it."""

    def __init__(self, process: asyncio.subprocess.Process, drain_s: float) -> None:
        self._process = process
        self._drain_s = drain_s
        #: Done with the exit status once Ray has ended.
        self.exited: asyncio.Task[int] = asyncio.create_task(process.wait())

    @classmethod
    async def start(
        cls,
        flags: Sequence[str],
        environment: Mapping[str, str],
        *,
        temp_dir: Path,
        drain_s: float,
        user: RayUser | None = None,
    ) -> Self:
        """Start it, with these variables and no others, as that user (None: as this one). Its messages go to our
        standard error. Raises Unsafe if ``temp_dir``, which is to be that user's alone, is somebody else's."""
        own(temp_dir, user)
        # Ray opens its folder to everybody; what is above it is not.
        flags = (*flags, f"--temp-dir={temp_dir / 'r'}")
        home = {"HOME": str(temp_dir), "USER": user.name, "LOGNAME": user.name} if user is not None else {}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *flags),
            env={**environment, **home},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            # A Ctrl-C at the terminal is for us; we end Ray in our order.
            start_new_session=True,
            preexec_fn=partial(begin_child, user),
        )
        log.info("ray.started", pid=process.pid)
        return cls(process, drain_s)

    @property
    def pid(self) -> int:
        return self._process.pid

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
