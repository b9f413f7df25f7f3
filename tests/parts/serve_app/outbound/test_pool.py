"""The real processes: what they are given, what they do when killed, stuck or left behind."""

# ruff: noqa: ASYNC220, ASYNC230, ASYNC240 - a test has nobody to block

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_network
from pathlib import Path

import pytest
import uvloop

from serve_app.outbound import process
from serve_app.outbound.base import OutboundError, OutboundUnavailable
from serve_app.outbound.limits import MAX_MESSAGE, Limits
from serve_app.outbound.pool import WorkerPool
from serve_app.outbound.process import WorkerLost, WorkerProcess
from tests.fakes.http_source import HttpSource, Seen, endless, reply, stalled

LOOPBACK = (ip_network("127.0.0.0/8"),)
ROOT = Path(__file__).parents[4]


@pytest.fixture
async def pool() -> AsyncIterator[WorkerPool]:
    async with WorkerPool(LOOPBACK) as pool:
        yield pool


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


def pids(pool: WorkerPool) -> list[int]:
    return [worker.pid for worker in pool._workers]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what changes is another process
            await asyncio.sleep(0.01)


def gone(pid: int) -> bool:
    """Not there, or dead and not yet collected by whoever inherited it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def test_files_and_webhooks_go_through_a_process(pool: WorkerPool, path: Path) -> None:
    body = os.urandom(3_000_000)
    async with HttpSource({"/a": reply(200, body), "/hook": reply(202, "schön".encode())}) as source:
        assert await pool.download(source.url("/a"), path, len(body), owner="ann") == len(body)
        assert await pool.post(source.url("/hook"), '{"ü": 1}', {"x-y": "z"}) == (202, "schön", None)
    assert path.read_bytes() == body
    assert (source.seen[1].body, source.seen[1].headers["x-y"]) == ('{"ü": 1}'.encode(), "z")
    assert os.getpid() not in pids(pool)


async def test_failures_come_back_as_they_were(pool: WorkerPool, path: Path, tmp_path: Path) -> None:
    async with HttpSource({"/big": reply(200, b"x" * 100), "/down": reply(503)}) as source:
        cases = [("/gone", 10, "rejected", False), ("/down", 10, "unreachable", True), ("/big", 99, "too_large", False)]
        for route, limit, reason, transient in cases:
            with pytest.raises(OutboundError) as caught:
                await pool.download(source.url(route), path, limit)
            assert (caught.value.reason, caught.value.transient) == (reason, transient)
        with pytest.raises(OSError, match="No such file"):
            await pool.download(source.url("/big"), tmp_path / "nowhere" / "file", 100)
    with pytest.raises(OutboundError) as caught:
        await pool.post("http://10.0.0.1/", "", {})
    assert caught.value.reason == "forbidden"


async def test_a_disk_without_room_is_ours(path: Path) -> None:
    async with HttpSource({"/a": reply(200, b"x")}) as source, WorkerPool(LOOPBACK, Limits(reserve=2**60)) as pool:
        with pytest.raises(OSError, match="MiB are free"):
            await pool.download(source.url("/a"), path, 1)


async def test_a_name_server_that_is_down_is_ours(path: Path) -> None:
    async with WorkerPool(LOOPBACK, dns_servers=["127.0.0.1:1"]) as pool:
        with pytest.raises(OutboundUnavailable):
            await pool.download("http://somewhere.example/", path, 1)


async def test_a_killed_worker_is_replaced_and_its_work_done_again(pool: WorkerPool, path: Path) -> None:
    answers = iter([stalled(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha"), reply(200, b"half")])

    async def answer(seen: Seen, writer: asyncio.StreamWriter) -> None:
        await next(answers)(seen, writer)

    async with HttpSource({"/a": answer, "/b": reply(200, b"x")}) as source:
        download = asyncio.create_task(pool.download(source.url("/a"), path, 4, owner="ann"))
        await until(lambda: source.seen and path.exists())
        (busy,) = [worker for worker in pool._workers if worker.busy["ann"]]
        os.kill(busy.pid, signal.SIGKILL)
        assert await download == 4
        assert path.read_bytes() == b"half"
        await pool.download(source.url("/b"), path, 1)
        assert len(pids(pool)) == 2
        assert busy.pid not in pids(pool)


async def test_a_killed_worker_costs_the_others_nothing(pool: WorkerPool, path: Path) -> None:
    """All that it had in hand is done again, each in a process of its own."""
    times: dict[str, int] = {}

    async def first_stalls(seen: Seen, writer: asyncio.StreamWriter) -> None:
        times[seen.target] = times.get(seen.target, 0) + 1
        await (stalled() if times[seen.target] == 1 else reply(200, b"x"))(seen, writer)

    async with HttpSource({f"/{n}": first_stalls for n in range(5)}) as source:
        requests = [asyncio.create_task(pool.post(source.url(f"/{n}"), "", {}, owner="ann")) for n in range(5)]
        await until(lambda: len(source.seen) == 5)
        (busy,) = [worker for worker in pool._workers if worker.busy["ann"]]
        os.kill(busy.pid, signal.SIGKILL)
        assert [reply.status for reply in await asyncio.gather(*requests)] == [200] * 5


async def test_a_request_that_breaks_every_process_is_told_so(pool: WorkerPool, path: Path) -> None:
    """Otherwise it would be tried for ever."""
    async with HttpSource({"/a": stalled(b"HTTP/1.1 200 OK\r\n\r\n")}) as source:
        download = asyncio.create_task(pool.download(source.url("/a"), path, 4, owner="ann"))
        for count in (1, 2):
            await until(lambda count=count: len(source.seen) == count)
            # Whoever of our children holds a connection to the source.
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            for child in map(int, children):
                if "serve_app.outbound" in Path(f"/proc/{child}/cmdline").read_text():
                    os.kill(child, signal.SIGKILL)
        with pytest.raises(WorkerLost):
            await download


async def test_a_stuck_worker_is_replaced(pool: WorkerPool, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_PING_S", 0.1)
    monkeypatch.setattr(process, "_PATIENCE_S", 2)
    async with HttpSource({"/a": reply(200, b"x")}) as source:
        await pool.download(source.url("/a"), path, 1)
        stuck = pids(pool)
        for pid in stuck:
            os.kill(pid, signal.SIGSTOP)
        async with asyncio.timeout(20):
            assert await pool.download(source.url("/a"), path, 1) == 1
        await until(lambda: all(map(gone, stuck)))


async def test_a_cancelled_download_leaves_no_file_and_no_connection(pool: WorkerPool, path: Path) -> None:
    hung_up = asyncio.Event()

    async def answer(seen: Seen, writer: asyncio.StreamWriter) -> None:
        try:
            await endless()(seen, writer)
        finally:
            hung_up.set()

    async with HttpSource({"/a": answer}) as source:
        download = asyncio.create_task(pool.download(source.url("/a"), path, 2**40))
        await until(path.exists)
        download.cancel()
        with pytest.raises(asyncio.CancelledError):
            await download
        assert not path.exists()
        await asyncio.wait_for(hung_up.wait(), 10)


async def test_an_owner_is_in_one_process_at_a_time(pool: WorkerPool) -> None:
    """So whoever's servers keep a process busy shares it with nobody who came later."""
    async with HttpSource({"/a": stalled()}) as source:
        requests = [
            asyncio.create_task(pool.post(source.url("/a"), "", {}, owner=owner))
            for owner in ("ann", "bob", "ann", "ann")
        ]
        await until(lambda: len(source.seen) == 4)
        busy = [dict(worker.busy) for worker in pool._workers]
        assert sorted(busy, key=str) == [{"ann": 3}, {"bob": 1}]
        for request in requests:
            request.cancel()
        await asyncio.wait(requests)
        assert [dict(worker.busy) for worker in pool._workers] == [{}, {}]


async def test_a_worker_holds_no_secret(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = ("DATABASE_URL", "R2_SECRET_KEY", "RAY_AUTH_TOKEN", "API_KEY", "WEBHOOK_SECRET", "REDIS_URL")
    for name in (*secrets, "HTTP_PROXY", "PYTHONPATH"):
        monkeypatch.setenv(name, "a secret")
    with open("/etc/hostname", "rb") as secret:
        os.set_inheritable(secret.fileno(), True)
        async with HttpSource({"/a": reply(200, b"x")}) as source, WorkerPool(LOOPBACK) as pool:
            await pool.download(source.url("/a"), path, 1)
            await pool.start()
            for pid in pids(pool):
                environment = Path(f"/proc/{pid}/environ").read_bytes()
                assert b"a secret" not in environment
                names = {line.partition(b"=")[0].decode() for line in environment.split(b"\0") if line}
                assert names <= {*process._PASSED_ON, "MALLOC_ARENA_MAX"}
                files = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
                assert "/etc/hostname" not in files
                assert "NoNewPrivs:\t1" in Path(f"/proc/{pid}/status").read_text()


_PARENT = """
import asyncio
from serve_app.outbound.pool import WorkerPool

async def main():
    async with WorkerPool() as pool:
        await pool.start()
        print(*(worker.pid for worker in pool._workers), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("stopped", [False, True])
async def test_workers_die_with_the_dispatcher(stopped: bool) -> None:
    """Even one that does not read any more."""
    parent = subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, cwd=ROOT)
    assert parent.stdout is not None
    children = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(children) == 2
    if stopped:
        os.kill(children[0], signal.SIGSTOP)
    assert not any(map(gone, children))
    parent.kill()
    await until(lambda: all(map(gone, children)))
    parent.wait()
    parent.stdout.close()


def test_it_works_on_the_loop_that_ray_brings(path: Path) -> None:
    async def fetch() -> None:
        async with HttpSource({"/a": reply(200, b"x" * 1000)}) as source, WorkerPool(LOOPBACK) as pool:
            assert await pool.download(source.url("/a"), path, 1000) == 1000

    uvloop.run(fetch())


async def test_closing_ends_the_processes() -> None:
    async with WorkerPool(LOOPBACK) as pool:
        await pool.start()
        running = pids(pool)
    assert all(map(gone, running))


async def test_a_worker_that_ends_at_once_is_noticed_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_PROGRAM", "raise SystemExit(1)")
    async with WorkerPool() as pool, asyncio.timeout(20):
        with pytest.raises(WorkerLost):
            await pool.start()


async def test_a_message_too_long_for_a_worker_does_not_break_it(pool: WorkerPool) -> None:
    await pool.start()
    before = pids(pool)
    with pytest.raises(ValueError, match="too long"):
        await pool.post("http://127.0.0.1/", "x" * MAX_MESSAGE, {})
    await pool.start()
    assert pids(pool) == before


async def test_a_worker_imports_little() -> None:
    """What a request waits for when a process was lost; and memory."""
    worker = await WorkerProcess.start({"allow_networks": [], "limits": {}, "dns_servers": []})
    begun = time.perf_counter()
    await worker.ask({"do": "ping"})
    print(f"\na worker answers {time.perf_counter() - begun:.2f} s after it was started")
    loaded = Path(f"/proc/{worker.pid}/maps").read_text()
    memory = int(Path(f"/proc/{worker.pid}/status").read_text().split("VmRSS:")[1].split()[0])
    await worker.aclose()
    for library in ("ray", "sqlalchemy", "psycopg", "pydantic_core", "numpy", "httpx"):
        assert f"/{library}/" not in loaded
    assert memory < 60_000
