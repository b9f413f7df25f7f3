"""What hostile clients cost everybody else, against the same service left alone, in one run.

``python tests/benchmarks/hostile.py``; about two minutes. Starts the service with its own data folder and port. Prints
Markdown tables.
"""

import os
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.ports import free_port

sys.path.insert(0, str(Path(__file__).parents[2]))

import httpx
import psutil

from tests.fakes.hostile_client import Refusal, held, send_body
from tests.stack import Stack, started

#: Seconds of each measurement.
MEASURE_S = 15.0
READERS = 4
MEGABYTE = 10**6


def main() -> None:
    """Start the service, then measure."""
    os.environ["PORT"] = str(free_port())
    os.environ.pop("DATABASE_URL", None)
    with tempfile.TemporaryDirectory(prefix="video-api-bench-", ignore_cleanup_errors=True) as data:
        Path(data).chmod(0o755)
        os.environ["VIDEO_API_DATA_DIR"] = data
        with started() as stack:
            bodies(stack)
            half_sent(stack)


def bodies(stack: Stack) -> None:
    """100 MB of JSON without a key, again and again, while somebody else asks for ``/health``."""
    (replica,) = stack.replicas("api")
    api = psutil.Process(replica["pid"])
    rate(stack, "/health", 5.0, readers=1, pause_s=0.05)
    quiet = rate(stack, "/health", MEASURE_S, readers=1, pause_s=0.05)
    before = peak = api.memory_info().rss
    refusals: list[Refusal] = []
    ends = threading.Event()

    def attack() -> None:
        while not ends.is_set():
            refusals.append(send_body(str(stack.http.base_url), "/api/v1/generate", 100 * MEGABYTE))

    def watch() -> None:
        nonlocal peak
        while not ends.is_set():
            peak = max(peak, api.memory_info().rss)
            time.sleep(0.02)

    with ThreadPoolExecutor() as threads:
        work = [threads.submit(attack), threads.submit(watch)]
        try:
            meanwhile = rate(stack, "/health", MEASURE_S, readers=1, pause_s=0.05)
        finally:
            ends.set()
        for each in work:
            each.result()
    print("100 MB of JSON without a key\n\n| | |\n|---|---|")
    print(f"| requests | {len(refusals)}, answered {sorted({each.status for each in refusals})} |")
    print(f"| answer after, p50 | {statistics.median(each.seconds for each in refusals) * 1000:.1f} ms |")
    print(f"| sent before the answer, most | {max(each.sent for each in refusals) / MEGABYTE:.1f} MB |")
    print(f"| memory of the api process, growth at the most | {(peak - before) / MEGABYTE:.1f} MB |")
    print(f"| /health of others, p50 / p99, quiet | {quiet.p(50):.1f} / {quiet.p(99):.1f} ms |")
    print(
        f"| /health of others, p50 / p99, meanwhile | {meanwhile.p(50):.1f} / {meanwhile.p(99):.1f} ms |\n", flush=True
    )


def half_sent(stack: Stack) -> None:
    """2,000 requests that are never finished, 500 of them with a key, and the rate at which others are served."""
    key = stack.http.headers["authorization"].removeprefix("Bearer ")
    job_id = stack.submit()
    stack.wait(job_id)
    quiet = rate(stack, f"/api/v1/jobs/{job_id}", MEASURE_S)
    with held(str(stack.http.base_url), 2000, 500, key):
        meanwhile = rate(stack, f"/api/v1/jobs/{job_id}", MEASURE_S)
    again = rate(stack, f"/api/v1/jobs/{job_id}", MEASURE_S)
    undisturbed = (quiet.per_s + again.per_s) / 2
    print("2,000 half-sent requests, 500 of them with a key\n\n| | reads/s | p99 |\n|---|---|---|")
    for name, found in (("before", quiet), ("while they are held", meanwhile), ("after", again)):
        print(f"| {name} | {found.per_s:.0f} | {found.p(99):.0f} ms |")
    print(f"| **share of undisturbed** | **{meanwhile.per_s / undisturbed:.2f}** | |", flush=True)


class Rate:
    """What readers saw."""

    def __init__(self, seconds: float, milliseconds: list[float]) -> None:
        self.per_s = len(milliseconds) / seconds
        self._sorted = sorted(milliseconds)

    def p(self, percent: int) -> float:
        return self._sorted[min(len(self._sorted) - 1, len(self._sorted) * percent // 100)]


def rate(stack: Stack, path: str, seconds: float, readers: int = READERS, pause_s: float = 0.0) -> Rate:
    """Read ``path`` over and over."""
    until = time.monotonic() + seconds

    def read() -> list[float]:
        found = []
        with httpx.Client(base_url=stack.http.base_url, headers=stack.http.headers, timeout=60) as http:
            while time.monotonic() < until:
                begun = time.monotonic()
                http.get(path).raise_for_status()
                found.append((time.monotonic() - begun) * 1000)
                time.sleep(pause_s)
        return found

    with ThreadPoolExecutor(readers) as threads:
        return Rate(seconds, [ms for each in [threads.submit(read) for _ in range(readers)] for ms in each.result()])


if __name__ == "__main__":
    main()
