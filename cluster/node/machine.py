"""What this machine is: its GPUs, its memory and its disk, and whether that is what was promised."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

#: GiB of GPU memory from which a GPU is of the class ``a100``: LTX-2 needs it.
_LARGE_GIB = 70
LARGE, SMALL = "a100", "4090"
#: The labels that deployments select nodes by: two sorts of GPUs; the memory of one, and of the host, in GiB.
GPU_CLASS, GPU_MEMORY, HOST_MEMORY = "gpu-class", "gpu-memory", "host-memory"
#: GiB: a card is of the largest that it holds. Drivers keep some for themselves, and some count by thousands.
_GPU_CLASSES = (80, 48, 40, 24)
_ABOUT = 0.98
#: The same of hosts, of which a share is somebody else's or the kernel's.
_HOST_CLASSES = (256, 128, 96, 64, 48, 32, 16)
_MOSTLY = 0.9
#: Where a container's limit is.
_CGROUP = Path("/sys/fs/cgroup/memory.max")


class Unfit(Exception):
    """This machine can't be the node that it was meant to be."""


@dataclass(frozen=True)
class Gpus:
    """The GPUs that the driver shows; none without a driver."""

    names: tuple[str, ...] = ()
    #: Of the smallest.
    memory_gib: float = 0.0

    @property
    def kind(self) -> str | None:
        """The class that deployments select by; None without a GPU."""
        if not self.names:
            return None
        return LARGE if self.memory_gib >= _LARGE_GIB else SMALL

    @property
    def labels(self) -> dict[str, str]:
        """Of a node that has them; a card that is of no class has no label for it."""
        held = _largest(_GPU_CLASSES, self.memory_gib, _ABOUT) if self.names else None
        return {
            **({GPU_CLASS: self.kind} if self.kind else {}),
            **({GPU_MEMORY: str(held)} if held else {}),
        }


def host_memory_gib(limit: Path = _CGROUP) -> float:
    """What this machine, or the container that it is, may use."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        own = limit.read_text().strip()
    except OSError:
        own = ""
    return min(whole, int(own) if own.isdigit() else whole) / 1024**3


def host_labels(memory_gib: float) -> dict[str, str]:
    """Of a node on such a host."""
    held = _largest(_HOST_CLASSES, memory_gib, _MOSTLY)
    return {HOST_MEMORY: str(held)} if held else {}


def _largest(classes: tuple[int, ...], gib: float, share: float) -> int | None:
    return next((each for each in classes if gib >= share * each), None)


def gpus() -> Gpus:
    """Ask the driver. Raises :class:`Unfit` if it is there but does not work."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return Gpus()
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True)
        rows = [line.rsplit(",", 1) for line in done.stdout.splitlines() if line.strip()]
        return Gpus(tuple(name.strip() for name, _ in rows), min(float(mib) for _, mib in rows) / 1024)
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        raise Unfit(f"the GPU driver does not work: {error}") from None


def check_gpus(found: Gpus, promised: int | None) -> int:
    """How many there are. Raises :class:`Unfit` if there are none, or fewer than promised."""
    if not found.names or len(found.names) < (promised or 1):
        raise Unfit(f"{len(found.names)} GPUs are here, {promised or 'at least 1'} promised")
    return promised or len(found.names)


def check_disk(folder: Path, gib: float) -> None:
    """Raises :class:`Unfit` if the disk has less than that left."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free / 1024**3
    if free < gib:
        raise Unfit(f"{folder} has {free:.0f} GiB left, {gib:.0f} needed")
