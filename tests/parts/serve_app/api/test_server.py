"""The HTTP server's own limits, on real connections. The application behind it answers with what it has read."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from starlette.types import Receive, Scope, Send

from serve_app.api.server import HttpServer, ServerLimits
from tests.ports import free_port

#: Short, so that a test need not wait; long enough for a busy machine.
QUICK = ServerLimits(head_s=0.5, keep_alive_s=1, stalled_s=0.5, linger_s=0.5)
OK = b"GET /ok HTTP/1.1\r\nhost: x\r\n\r\n"


class App:
    """``/ok`` answers at once, ``/read`` after it has read the body, ``/hold`` when told, ``/large`` with 64 MiB,
    ``/leave`` never: it waits for the client to leave."""

    def __init__(self) -> None:
        self.calls = 0
        self.read = 0
        self.release = asyncio.Event()
        self.left = asyncio.Event()
        #: Once an answer has been sent, or nobody takes it any more.
        self.done = asyncio.Event()
        self.headers: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls += 1
        if scope["path"] == "/leave":
            while (await receive())["type"] != "http.disconnect":
                pass
            self.left.set()
            return
        body = b"x" * (64 << 20) if scope["path"] == "/large" else scope["path"].encode()
        if scope["path"] == "/read":
            more = True
            while more:
                message = await receive()
                self.read += len(message.get("body", b""))
                more = message.get("more_body", False)
        self.headers = [name for name, _ in scope["headers"]]
        if scope["path"] == "/hold":
            await self.release.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        for start in range(0, len(body), 1 << 16):
            await send({"type": "http.response.body", "body": body[start : start + (1 << 16)], "more_body": True})
        await send({"type": "http.response.body"})
        self.done.set()


class Peer:
    """One connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        """As much as the server takes; it may close meanwhile."""
        try:
            self.writer.write(data)
            await self.writer.drain()
        except ConnectionError:
            return

    async def answer(self) -> tuple[int, bytes]:
        """Status and body of the next answer."""
        async with asyncio.timeout(20):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
            return int(head.split()[1]), await self.reader.readexactly(length)

    async def rest(self) -> bytes:
        """What comes until the server closes, orderly or not."""
        received = b""
        async with asyncio.timeout(20):
            try:
                while piece := await self.reader.read(65536):
                    received += piece
            except ConnectionError:
                pass
        return received


@asynccontextmanager
async def serving(app: App, limits: ServerLimits = QUICK) -> AsyncIterator[Callable[[], "asyncio.Task[Peer]"]]:
    server = HttpServer(app, "127.0.0.1", 0, limits, base_url="http://t")
    await server.start()
    writers: list[asyncio.StreamWriter] = []

    async def connect() -> Peer:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writers.append(writer)
        return Peer(reader, writer)

    try:
        yield lambda: asyncio.create_task(connect())
    finally:
        app.release.set()
        for writer in writers:
            writer.close()
        await server.stop()


async def test_requests_follow_one_another_on_a_connection() -> None:
    async with serving(App()) as connect:
        peer = await connect()
        for _ in range(3):
            await peer.send(OK)
            assert await peer.answer() == (200, b"/ok")
        await peer.send(OK * 5)
        assert [await peer.answer() for _ in range(5)] == [(200, b"/ok")] * 5


async def test_a_body_is_read_at_the_pace_of_the_application() -> None:
    app = App()
    async with serving(app) as connect:
        peer = await connect()
        await peer.send(b"POST /read HTTP/1.1\r\nhost: x\r\ncontent-length: 3000000\r\n\r\n")
        await peer.send(b"x" * 3_000_000)
        assert await peer.answer() == (200, b"/read")
        assert app.read == 3_000_000


async def test_a_body_may_take_longer_than_a_connection_may_idle() -> None:
    app = App()
    async with serving(app, replace(QUICK, keep_alive_s=1)) as connect:
        peer = await connect()
        await peer.send(b"POST /read HTTP/1.1\r\nhost: x\r\ncontent-length: 15\r\n\r\n")
        for _ in range(15):
            await peer.send(b"x")
            await asyncio.sleep(0.1)  # the sender's pace
        assert await peer.answer() == (200, b"/read")
        assert app.read == 15


@pytest.mark.parametrize("separator", [b"", b"\r\nb: "])
async def test_endless_headers_are_refused(separator: bytes) -> None:
    app = App()
    async with serving(app) as connect:
        peer = await connect()
        await peer.send(b"GET /ok HTTP/1.1\r\nhost: x\r\na: " + (b"x" * 1000 + separator) * 300)
        received = await peer.rest()
        assert received.startswith(b"HTTP/1.1 431 ")
        problem = json.loads(received.partition(b"\r\n\r\n")[2])
        assert (problem["code"], problem["type"]) == ("headers_too_large", "http://t/errors/headers_too_large")
        assert app.calls == 0


@pytest.mark.parametrize(
    "head",
    [
        b"GET /ok HTTP/1.1\r\nhost: x\r\na: " + b"x" * 40_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /ok HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 200 + b"\r\n",
    ],
    ids=["long", "path", "many"],
)
async def test_large_headers_are_refused(head: bytes) -> None:
    app = App()
    async with serving(app) as connect:
        peer = await connect()
        await peer.send(head)
        assert (await peer.rest()).startswith(b"HTTP/1.1 431 ")
        # Also piece by piece, as a network brings them.
        peer = await connect()
        for start in range(0, len(head), 700):
            await peer.send(head[start : start + 700])
        assert (await peer.rest()).startswith(b"HTTP/1.1 431 ")
        assert app.calls == 0


CHUNKED = b"POST /read HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n"


@pytest.mark.parametrize(
    "endless",
    [b"0\r\n" + b"a: b\r\n" * 1_000_000, b"0\r\na: " + b"b" * 6_000_000, b"1;" + b"b" * 6_000_000],
    ids=["trailers", "one trailer", "an extension of a chunk"],
)
async def test_what_follows_a_body_without_end_is_cut(endless: bytes) -> None:
    async with serving(App(), ServerLimits()) as connect:
        peer = await connect()
        await peer.send(CHUNKED)
        await peer.send(endless)
        assert await peer.rest() == b""


async def test_trailers_are_no_headers_and_small_pieces_no_offence() -> None:
    app = App()
    async with serving(app) as connect:
        peer = await connect()
        await peer.send(CHUNKED)
        await peer.send(b"1\r\nx\r\n" * 100_000)
        await peer.send(b"0\r\nauthorization: Bearer x\r\n\r\n")
        assert await peer.answer() == (200, b"/read")
        assert (app.read, app.headers) == (100_001, [b"host", b"transfer-encoding"])


async def test_every_request_of_a_connection_hears_that_it_is_lost() -> None:
    """And not the last one only, while the one in progress writes to nobody."""
    app = App()
    async with serving(app) as connect:
        peer = await connect()
        await peer.send(b"GET /leave HTTP/1.1\r\nhost: x\r\n\r\n" + OK * 3)
        peer.writer.close()
        async with asyncio.timeout(20):
            await app.left.wait()


async def test_a_large_body_does_not_count_as_the_next_request_s_headers() -> None:
    async with serving(App()) as connect:
        peer = await connect()
        await peer.send(b"POST /read HTTP/1.1\r\nhost: x\r\ncontent-length: 60000\r\n\r\n" + b"x" * 60_000 + OK[:10])
        assert await peer.answer() == (200, b"/read")
        await peer.send(OK[10:])
        assert await peer.answer() == (200, b"/ok")


@pytest.mark.parametrize(
    "begun", [b"", b"\r\n", b"GET /ok HT", b"GET /ok HTTP/1.1\r\nhost: x\r\n"], ids=["nothing", "blank", "line", "head"]
)
async def test_half_a_head_is_waited_for_only_so_long(begun: bytes) -> None:
    async with serving(App()) as connect:
        peer = await connect()
        await peer.send(begun)
        assert await peer.rest() == b""


async def test_an_idle_connection_ends_blank_lines_or_not() -> None:
    async with serving(App()) as connect:
        silent, dripping = await connect(), await connect()
        for peer in (silent, dripping):
            await peer.send(OK)
            assert await peer.answer() == (200, b"/ok")

        async def drip() -> None:
            while True:
                await dripping.send(b"\r\n")
                await asyncio.sleep(0.1)

        dripper = asyncio.create_task(drip())
        assert await silent.rest() == b""
        assert await dripping.rest() == b""
        dripper.cancel()


async def test_what_is_no_http_is_answered_once() -> None:
    async with serving(App()) as connect:
        peer = await connect()
        await peer.send(b"\x16\x03\x01 hello\r\n\r\n" * 50)
        received = await peer.rest()
        assert received.startswith(b"HTTP/1.1 400 ")
        assert received.count(b"HTTP/1.1") == 1


async def test_a_body_that_nobody_reads_does_not_hide_the_answer() -> None:
    """The sender of a refused upload has to see why, though it goes on sending for a while."""
    async with serving(App()) as connect:
        peer = await connect()
        await peer.send(b"POST /ok HTTP/1.1\r\nhost: x\r\ncontent-length: 100000000\r\n\r\n")
        assert await peer.answer() == (200, b"/ok")
        await peer.send(b"x" * 1_000_000)
        # No more answers, and no second request hidden in that body.
        await peer.send(OK)
        assert await peer.rest() == b""


async def test_a_body_that_nobody_reads_is_not_read_for_ever() -> None:
    async with serving(App(), replace(QUICK, linger_s=60)) as connect:
        peer = await connect()
        await peer.send(b"POST /ok HTTP/1.1\r\nhost: x\r\ncontent-length: 100000000\r\n\r\n")
        assert await peer.answer() == (200, b"/ok")
        await peer.send(b"x" * 50_000_000)
        assert await peer.rest() == b""


async def test_thousands_of_requests_in_one_piece_are_not_all_taken_up() -> None:
    app = App()
    async with serving(app) as connect:
        peer = await connect()
        await peer.send(b"GET /hold HTTP/1.1\r\nhost: x\r\n\r\n" * 5000)
        assert await peer.rest() == b""
        app.release.set()
        other = await connect()
        await other.send(OK)
        assert await other.answer() == (200, b"/ok")
        assert app.calls == 2


async def test_a_reader_that_does_not_read_is_cut() -> None:
    app = App()
    async with serving(app) as connect:
        peer = await connect()
        await peer.send(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(20):
            await app.done.wait()
        peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert len(await peer.rest()) < 64 << 20


async def test_too_many_connections_cost_the_most_silent_one_its_place() -> None:
    app = App()
    async with serving(app, ServerLimits(connections=20)) as connect:
        busy = await connect()
        await busy.send(b"GET /hold HTTP/1.1\r\nhost: x\r\n\r\n")
        idle = [await connect() for _ in range(10)]
        for peer in idle:
            await peer.send(b"POST /read HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nx")
        # Half a body each, and the first of them has just been heard of.
        await idle[0].send(b"x")
        flood = [await connect() for _ in range(30)]
        honest = await connect()
        await honest.send(OK)
        assert await honest.answer() == (200, b"/ok")
        assert await idle[1].rest() == b""
        assert await flood[0].rest() == b""
        # Whoever has a whole request stays.
        app.release.set()
        assert await busy.answer() == (200, b"/hold")


async def test_requests_in_progress_end_before_the_server_does() -> None:
    app = App()
    # Nobody else is to have it when the server has gone.
    server = HttpServer(app, "127.0.0.1", free_port(), QUICK)
    await server.start()
    peer = Peer(*await asyncio.open_connection("127.0.0.1", server.port))
    await peer.send(b"GET /hold HTTP/1.1\r\nhost: x\r\n\r\n")
    while not app.calls:  # noqa: ASYNC110 - the request is on its way through the kernel
        await asyncio.sleep(0.01)
    stopping = asyncio.create_task(server.stop())
    await asyncio.sleep(0)
    app.release.set()
    assert await peer.answer() == (200, b"/hold")
    await stopping
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", server.port)
    with pytest.raises(RuntimeError):
        server.check()
    peer.writer.close()


def test_a_port_that_is_taken_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="set PORT to another"):
        HttpServer(App.__new__(App), "127.0.0.1", taken.getsockname()[1])
