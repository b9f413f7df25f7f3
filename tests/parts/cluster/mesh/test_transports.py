"""Our transports over real sockets: TCP and TLS give the same bytes, in turns, to the end."""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from cluster.mesh import sockets
from cluster.mesh.flow import FramedEndpoint, PlainEndpoint, splice, switch_protocol
from cluster.mesh.identity import HubIdentity
from cluster.mesh.invitation import client_context
from cluster.mesh.pieces import DONE, END, PIECE
from cluster.mesh.tls import Tls
from cluster.mesh.transports import SHUTDOWN_S, TcpTransport, TlsTransport, handshake

IDENTITY = HubIdentity.derived(b"the streams of the tests........")


@dataclass
class Recorder(asyncio.Protocol):
    """Notes what it is told. ``order`` may be shared, to see whose turn it was."""

    keeps_half: bool = False
    name: str = ""
    order: list[str] = field(default_factory=list)
    got: bytearray = field(default_factory=bytearray)
    eof: bool = False
    paused: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[Exception | None] = loop.create_future()
        self.resumed = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        assert isinstance(data, bytes)
        self.got += data
        self.order.append(self.name)

    def eof_received(self) -> bool:
        self.eof = True
        return self.keeps_half

    def pause_writing(self) -> None:
        self.paused.append(True)

    def resume_writing(self) -> None:
        self.paused.append(False)
        self.resumed.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set_result(error)


Pair = Callable[[Recorder, Recorder], Awaitable[tuple[TcpTransport, TcpTransport]]]


def connected() -> tuple[socket.socket, socket.socket]:
    """Two ends of one TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    near.setblocking(False)
    far.setblocking(False)
    return near, far


async def plain(one: Recorder, other: Recorder) -> tuple[TcpTransport, TcpTransport]:
    near, far = connected()
    return TcpTransport(near, one), TcpTransport(far, other)


async def tls(one: Recorder, other: Recorder) -> tuple[TcpTransport, TcpTransport]:
    near, far = connected()
    client = Tls(client_context(), server_side=False, server_hostname="hub")
    server = Tls(IDENTITY.server_context(), server_side=True)
    await asyncio.gather(handshake(near, client), handshake(far, server))
    return TlsTransport(near, one, client), TlsTransport(far, other, server)


@pytest.fixture(params=[plain, tls])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    made: list[TcpTransport] = []

    async def make(one: Recorder, other: Recorder) -> tuple[TcpTransport, TcpTransport]:
        streams: tuple[TcpTransport, TcpTransport] = await request.param(one, other)
        made.extend(streams)
        return streams

    yield make
    for stream in made:
        stream.abort()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.001)


async def test_bytes_arrive_both_ways_whatever_their_number(pair: Pair) -> None:
    one, other = Recorder(), Recorder()
    near, far = await pair(one, other)
    sent = b"".join(bytes([size % 251]) * size for size in (1, 4, 16383, 16384, 16385, 100_000, 3_000_000))
    position = 0
    for size in (1, 4, 16383, 16384, 16385, 100_000, 3_000_000):
        near.write(memoryview(sent)[position : position + size])
        position += size
    far.writelines([b"an", b"swer"])
    await until(lambda: len(other.got) == len(sent) and one.got == b"answer")
    assert other.got == sent


async def test_a_reader_that_pauses_makes_the_writer_pause(pair: Pair) -> None:
    one, other = Recorder(), Recorder()
    near, far = await pair(one, other)
    near.set_write_buffer_limits(1000)
    far.pause_reading()
    while not one.paused:
        near.write(bytes(100_000))
    sent = near.get_write_buffer_size()
    assert sent > 1000
    far.resume_reading()
    await asyncio.wait_for(one.resumed.wait(), 30)
    assert one.paused == [True, False]
    await until(lambda: near.get_write_buffer_size() == 0)


async def test_closing_sends_what_is_buffered_first(pair: Pair) -> None:
    one, other = Recorder(), Recorder()
    near, far = await pair(one, other)
    far.pause_reading()
    while not near.get_write_buffer_size():
        near.write(bytes(100_000))
    near.write(b"the end")
    near.close()
    near.write(b"too late")
    assert near.is_closing()
    far.resume_reading()
    assert await asyncio.wait_for(other.lost, 30) is None
    assert await asyncio.wait_for(one.lost, SHUTDOWN_S / 2) is None
    assert other.eof
    assert other.got.endswith(b"the end")


async def test_an_abort_ends_both_sides(pair: Pair) -> None:
    one, other = Recorder(), Recorder()
    near, _ = await pair(one, other)
    near.abort()
    near.abort()
    assert await asyncio.wait_for(one.lost, 30) is None
    await asyncio.wait_for(other.lost, 30)
    near.write(b"nobody is there")


async def test_one_direction_may_end_before_the_other() -> None:
    one, other = Recorder(), Recorder(keeps_half=True)
    near, far = await plain(one, other)
    near.write(b"question")
    near.write_eof()
    await until(lambda: other.eof)
    far.write(b"answer")
    far.write_eof()
    far.close()
    await asyncio.wait_for(one.lost, 30)
    assert (other.got, one.got) == (b"question", b"answer")


async def test_a_reset_behind_data_is_noticed(pair: Pair) -> None:
    """uvloop tells of an error once, and then there was something to read."""
    one, other = Recorder(), Recorder()
    near, _ = await pair(one, other)
    near.write(bytes(300_000))
    sockets.reset(near)
    await asyncio.wait_for(other.lost, 30)
    assert other.got


async def test_whoever_waited_for_a_reader_that_died_goes_on() -> None:
    """A program sends its last word, stops reading and is killed, when the answer's end is in its buffer."""
    kept, app = connected()
    far, remote = Recorder(), FramedEndpoint()
    local = PlainEndpoint()
    from_far, _ = await tls(far, remote)
    to_app = TcpTransport(kept, local)
    splice(local, remote)
    app.shutdown(socket.SHUT_WR)
    to_app.set_write_buffer_limits(1 << 30)
    while not to_app.get_write_buffer_size():
        from_far.write(PIECE.pack(60_000) + bytes(60_000))
        await asyncio.sleep(0)
    await until(lambda: from_far.get_write_buffer_size() == 0)
    await asyncio.sleep(0.1)
    to_app.set_write_buffer_limits(to_app.get_write_buffer_size() + 10)
    from_far.write(PIECE.pack(10_000) + bytes(10_000) + END)
    await until(lambda: remote._paused and to_app.is_closing())
    app.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    app.close()
    await until(lambda: local.lost)
    from_far.write(DONE)
    from_far.close()
    await until(lambda: remote.lost)


async def test_an_end_is_told_once() -> None:
    one, other = Recorder(), Recorder(keeps_half=True)
    near, far = await plain(one, other)
    near.write_eof()
    await until(lambda: other.eof)
    other.eof = False
    far.pause_reading()
    far.resume_reading()
    far.write(b"answer")
    await until(lambda: one.got == b"answer")
    assert not other.eof
    far.close()


async def test_whoever_takes_over_a_connection_that_is_gone_is_told(pair: Pair) -> None:
    first = Recorder()
    stream, _ = await pair(first, Recorder())
    stream.abort()
    at_once, later = Recorder(), Recorder()
    switch_protocol(stream, at_once)
    assert await asyncio.wait_for(at_once.lost, 30) is None
    assert not first.lost.done()
    switch_protocol(stream, later)
    assert await asyncio.wait_for(later.lost, 30) is None


async def test_options_of_a_connection_that_is_gone_do_not_matter(pair: Pair) -> None:
    one = Recorder()
    stream, _ = await pair(one, Recorder())
    stream.abort()
    sockets.tune(stream, always_read=True)
    sockets.reset(stream)
    assert not sockets.PathMonitor().is_dead(stream, 0.0)
    assert await asyncio.wait_for(one.lost, 30) is None


async def test_what_comes_right_behind_the_handshake_is_not_forgotten() -> None:
    near, far = connected()
    client = Tls(client_context(), server_side=False, server_hostname="hub")
    server = Tls(IDENTITY.server_context(), server_side=True)
    shaken = asyncio.create_task(handshake(far, server))
    await handshake(near, client)
    await shaken
    server.incoming.write(client.encrypt(b"early"))
    other = Recorder()
    stream = TlsTransport(far, other, server)
    await until(lambda: other.got == b"early")
    stream.abort()
    near.close()


async def test_garbage_ends_a_tls_stream() -> None:
    one, other = Recorder(), Recorder()
    near, far = await tls(one, other)
    far.get_extra_info("socket").send(b"\x17\x03\x03\x00\x20" + bytes(32))
    assert isinstance(await asyncio.wait_for(one.lost, 30), ssl.SSLError)
    assert near.is_closing()
    far.abort()


async def test_who_leaves_in_the_handshake_is_an_error() -> None:
    near, far = connected()
    near.close()
    with pytest.raises(OSError, match=r"left|reset"):
        await handshake(far, Tls(IDENTITY.server_context(), server_side=True))
    far.close()


async def test_a_bulk_transfer_leaves_the_others_their_turn() -> None:
    """With everything there already, the small one is told after one piece of the great one and not after all."""
    order: list[str] = []
    great_near, great_far = connected()
    small_near, small_far = connected()
    with great_near, small_near:
        with suppress(BlockingIOError):
            while True:
                great_near.send(bytes(1 << 16))
        small_near.send(b"x")
        streams = [TcpTransport(great_far, Recorder(name="great", order=order))]
        streams.append(TcpTransport(small_far, Recorder(name="small", order=order)))
        await until(lambda: "small" in order)
        assert order.index("small") <= 1
        for stream in streams:
            stream.abort()


async def test_a_protocol_that_fails_loses_its_connection_and_no_other(pair: Pair) -> None:
    class Broken(Recorder):
        def data_received(self, data: bytes) -> None:
            raise ZeroDivisionError

    one, other = Recorder(), Broken()
    near, far = await pair(one, other)
    near.write(b"x")
    assert await asyncio.wait_for(other.lost, 30) is None
    assert isinstance(await asyncio.wait_for(one.lost, 30), ConnectionResetError)
    assert far.is_closing()
