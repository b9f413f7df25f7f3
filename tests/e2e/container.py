"""A container on a machine of ``tests.fakes.netns``: what a PaaS or a rented GPU machine gives to a program.

It has the capabilities of a normal container, process numbers of its own, and 64 MB of ``/dev/shm``.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.fakes import netns
from tests.fakes.netns import Network

ROOT = Path(__file__).parents[2]
#: Docker's default set.
CAPABILITIES = (
    "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,+net_raw,+sys_chroot,"
    "+mknod,+audit_write,+setfcap"
)


def missing() -> str | None:
    """Why there can be no containers here; None if there can."""
    tools = [tool for tool in ("nft", "unshare", "setpriv", "mount") if shutil.which(tool) is None]
    return netns.missing() or (f"containers need {', '.join(tools)}" if tools else None)


@dataclass
class Container:
    """One container. ``folder`` is its disk; its output goes to ``log`` there."""

    network: Network
    machine: str
    folder: Path
    process: "subprocess.Popen[bytes] | None" = None

    def boot(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Run ``command`` as its process 1."""
        self.folder.mkdir(exist_ok=True)
        contained = f'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec setpriv --bounding-set {CAPABILITIES} "$@"'
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"]
        inside = ["ip", "netns", "exec", self.network.name(self.machine), *namespaces]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [*inside, "sh", "-c", contained, "sh", *command],
                env={**os.environ, **environment},
                stdout=log,
                stderr=log,
                cwd=ROOT,
            )

    def wait(self, timeout_s: float) -> int:
        """Its exit status."""
        assert self.process is not None
        return self.process.wait(timeout_s)

    def terminate(self) -> None:
        """SIGTERM to process 1, as a platform does."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        os.kill(int(children.read_text().split()[0]), signal.SIGTERM)

    def kill(self) -> None:
        """Every process at once, as when a machine loses its power."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def kill_process(self, name: str) -> None:
        """SIGKILL to the processes of that name."""
        for pid, called in self.processes().items():
            if called == name:
                os.kill(pid, signal.SIGKILL)

    def processes(self) -> dict[int, str]:
        """Name of every process on the machine, by its number outside."""
        command = ["ip", "netns", "pids", self.network.name(self.machine)]
        pids = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        return {int(pid): Path(f"/proc/{pid}/comm").read_text().strip() for pid in pids}

    def log(self) -> str:
        """What it has said up to now."""
        return (self.folder / "log").read_text(errors="replace")
