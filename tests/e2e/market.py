"""A market of rented machines: the fake Vast, whose contracts run on machines of ``tests.fakes.netns``.

What is rented is a container with the image that was asked for, as far as a test can have one: a Python with torch and
everything else that the stock image has, and a driver that shows a GPU.
"""

import asyncio
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.e2e.container import Container
from tests.fakes.netns import Network
from tests.fakes.vast import Contract, FakeVast
from tests.fakes.vast_server import VastServer

#: Where containers reach the API, in place of its host's name.
API_PORT = 8443
#: What ``nvidia-smi`` says in them, by the GPU that an offer names.
_DRIVERS = {"A100 SXM4": "NVIDIA A100-SXM4-80GB, 81920", "RTX 4090": "NVIDIA GeForce RTX 4090, 24564"}
#: Folders that a container has on its own disk.
_OWN = (Path("/root/video-api"), Path("/tmp/ray"), Path(f"/tmp/video-api-{os.geteuid()}"))


class WallClock:
    """The same for every thread."""

    def monotonic(self) -> float:
        return time.monotonic()

    def now(self) -> datetime:
        return datetime.now(UTC)


@dataclass
class Machines:
    """What contracts run on: one container after another on each machine."""

    network: Network
    folder: Path
    #: Of the stock image: ``bin/python3`` and so on.
    image: Path
    names: Sequence[str] = ("gpu1", "gpu2")
    #: By contract.
    containers: dict[int, Container] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, contract: Contract) -> None:
        """Called as it is rented."""
        if contract.scenario.end == "oci_error":
            return
        with self._lock:
            taken = {each.machine for each in self.containers.values() if each.process is not None}
            free = [name for name in self.names if name not in taken]
            assert free, "more contracts than machines"
            container = Container(self.network, free[0], self.folder / f"contract-{contract.id}")
            self.containers[contract.id] = container
        self.network.plug_in_anew(container.machine)
        container.folder.mkdir()
        driver = container.folder / "bin"
        driver.mkdir()
        shown = _DRIVERS[contract.offer["gpu_name"]]
        (driver / "nvidia-smi").write_text(f"#!/bin/sh\necho '{shown}'\n")
        (driver / "nvidia-smi").chmod(0o755)
        system = ":".join(("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"))
        environment = {
            "PATH": f"{driver}:{self.image / 'bin'}:{system}",
            "HOME": "/root",
            "OMP_NUM_THREADS": "1",
            **contract.body["env"],
            "CONTAINER_ID": str(contract.id),
            "CONTAINER_API_KEY": contract.key,
            "VAST_CONTAINERLABEL": f"C.{contract.id}",
            "GPU_COUNT": "1",
        }
        container.boot(contract.body["args"], environment, bare=True, own=_OWN)

    def end(self, contract: Contract) -> None:
        """The host kills whatever runs."""
        if contract.id not in self.containers:
            return
        container = self.containers[contract.id]
        contract.bytes_down, contract.bytes_up = self.traffic(container)
        container.kill()
        container.process = None

    def traffic(self, container: Container) -> tuple[float, float]:
        """Bytes to and from the container, as its host counts them."""
        seen = container.network.run(container.machine, "cat", "/proc/net/dev")
        (row,) = (line.split() for line in seen.splitlines() if line.strip().startswith("eth0:"))
        return float(row[1]), float(row[9])

    def log(self, contract: int) -> str:
        return self.containers[contract].log()


@dataclass
class Market:
    vast: FakeVast
    machines: Machines
    url: str

    def logs(self) -> Mapping[int, str]:
        return {number: self.machines.log(number) for number in self.machines.containers}


@contextmanager
def market(network: Network, folder: Path, image: Path, offers: Sequence[dict[str, object]]) -> Iterator[Market]:
    """The API at :attr:`Market.url` for every machine of the network, until the end; then nothing runs any more."""
    made = [place for place in _OWN if not place.exists()]
    for place in made:
        place.mkdir(parents=True)
    machines = Machines(network, folder, image)
    vast = FakeVast(list(offers), WallClock(), hosts=machines)
    try:
        with _serving(vast, folder / "vast.sock") as path:
            network.forward(str(path), API_PORT)
            yield Market(vast, machines, f"http://{network.gateway('head')}:{API_PORT}")
    finally:
        for container in machines.containers.values():
            container.kill()
        for place in made:
            place.rmdir()


@contextmanager
def _serving(vast: FakeVast, socket: Path) -> Iterator[Path]:
    """In a thread of its own."""
    loop, up, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with VastServer(vast, socket=socket):
            os.chmod(socket, 0o666)
            up.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert up.wait(30)
    try:
        yield socket
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.close()
