"""A container on a machine of ``tests.fakes.netns``: what a PaaS or a rented GPU machine gives to a program.

It has the capabilities of a normal container, process numbers of its own, and 64 MB of ``/dev/shm``. Everybody in it
may read Python and our code, as in an image, also where this machine keeps them in a folder that is root's alone.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray

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
    tools = [tool for tool in ("nft", "unshare", "nsenter", "setpriv", "mount") if shutil.which(tool) is None]
    return netns.missing() or (f"containers need {', '.join(tools)}" if tools else None)


@dataclass
class Container:
    """One container. ``folder`` is its disk; its output goes to ``log`` there."""

    network: Network
    machine: str
    folder: Path
    process: "subprocess.Popen[bytes] | None" = None

    def boot(
        self, command: Sequence[str], environment: Mapping[str, str], *, bare: bool = False, own: Sequence[Path] = ()
    ) -> None:
        """Run ``command`` as its process 1. ``bare``: with these variables and no others. ``own``: folders, which have
        to be there, that are on this container's disk and not on this machine's."""
        self.folder.mkdir(exist_ok=True)
        mounts = ["mount -t tmpfs -o size=64m tmpfs /dev/shm", *_opened(self.folder / "opened")]
        for number, place in enumerate(own):
            disk = self.folder / f"disk{number}"
            disk.mkdir(exist_ok=True)
            # What stands in for a closed folder above it does not have it.
            mounts += [f"mkdir -p {place}", f"mount --bind {disk} {place}"]
        contained = " && ".join([*mounts, f'exec setpriv --bounding-set {CAPABILITIES} "$@"'])
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"]
        inside = ["ip", "netns", "exec", self.network.name(self.machine), *namespaces]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [*inside, "sh", "-c", contained, "sh", *command],
                env={**({} if bare else _inherited()), **environment},
                stdout=log,
                stderr=log,
                cwd=ROOT,
            )

    def run(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None, timeout_s: float = 120
    ) -> "subprocess.CompletedProcess[str]":
        """A second program in it, as root, run to its end: with ``environment`` and nothing else of what we have."""
        return subprocess.run(
            ["nsenter", "--target", str(self.first()), "--net", "--mount", "--pid", "--wd=" + str(ROOT), *command],
            env={"PATH": os.environ["PATH"], **(environment or {})},
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def first(self) -> int:
        """Its process 1, by its number outside."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return int(children.read_text().split()[0])

    def wait(self, timeout_s: float) -> int:
        """Its exit status."""
        assert self.process is not None
        return self.process.wait(timeout_s)

    def terminate(self) -> None:
        """SIGTERM to process 1, as a platform does."""
        os.kill(self.first(), signal.SIGTERM)

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


def _inherited() -> dict[str, str]:
    """What this process has without Ray's settings and the closed folder of a cluster of its own."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_") and name != "TMPDIR"}


def _opened(folder: Path) -> list[str]:
    """Shell commands that let everybody reach Python and the code: where a folder above them is root's alone, another
    stands in for it that holds nothing but the way on."""
    behind: defaultdict[Path, set[Path]] = defaultdict(set)
    for name in (sys.base_prefix, sys.prefix, ray.__file__, __file__):
        place = Path(name).resolve()
        place = place if place.is_dir() else place.parent
        closed = [above for above in place.parents if not above.stat().st_mode & 0o001]
        if closed:
            behind[closed[-1]].add(place)
    commands = []
    for number, (outermost, places) in enumerate(behind.items()):
        stand_in = folder / str(number)
        for place in places:
            way = stand_in / place.relative_to(outermost)
            commands += [f"(umask 022 && mkdir -p {way})", f"mount --rbind {place} {way}"]
        commands.append(f"mount --rbind {stand_in} {outermost}")
    return commands
