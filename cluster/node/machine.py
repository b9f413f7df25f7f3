"""What this machine is: its GPUs and its disk, and whether that is what was promised."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

#: GiB of GPU memory from which a GPU is of the class ``a100``: LTX-2 needs it.
_LARGE_GIB = 70
LARGE, SMALL = "a100", "4090"
#: The label that deployments select nodes by.
GPU_CLASS = "gpu-class"


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
