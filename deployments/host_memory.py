"""How much memory this machine, or the container that it is, has."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class HostMemory:
    """Bytes."""

    total: int
    #: What a program may still take before something is killed or swapped out.
    free: int


def read(root: Path = Path("/")) -> HostMemory:
    """Of the machine, or what the container (cgroup v2) allows of it. Without Linux's files: all of it is free."""
    meminfo = root / "proc/meminfo"
    if not meminfo.is_file():
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return HostMemory(total, total)
    kibibytes = _numbers(meminfo)
    total, free = kibibytes["MemTotal"] * 1024, kibibytes["MemAvailable"] * 1024
    group = root / "sys/fs/cgroup"
    if (group / "memory.max").is_file() and (limit := (group / "memory.max").read_text().strip()) != "max":
        # Files that were read are given up for the asking, weights among them.
        kept = _numbers(group / "memory.stat")
        files = kept.get("inactive_file", 0) + kept.get("active_file", 0)
        used = int((group / "memory.current").read_text()) - files
        total, free = min(total, int(limit)), min(free, max(0, int(limit) - used))
    return HostMemory(total, free)


def _numbers(path: Path) -> dict[str, int]:
    """Lines such as ``MemTotal:  1024 kB`` or ``inactive_file 4096``."""
    words = (line.replace(":", " ").split() for line in path.read_text().splitlines())
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdigit()}
