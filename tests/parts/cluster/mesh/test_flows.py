"""Bytes through the mesh, between all kinds of ends."""

import asyncio
import hashlib
import os
import random
from pathlib import Path
from typing import cast

import pytest

from cluster.mesh import sockets
from cluster.mesh.agent import Agent
from cluster.mesh.hub import Hub
from cluster.mesh.invitation import client_context
from cluster.mesh.pieces import PIECE
from cluster.mesh.plan import HEAD, slot
from cluster.mesh.wire import Open, encode
from tests.parts.cluster.mesh.loopback import OFFSET, LoopbackMesh, digest, echo, exchange, greet, loopback_mesh, until
from tests.ports import block

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("loopback")]

WAYS = [(1, 2), (2, 1)]


@pytest.mark.parametrize(("at", "to"), WAYS)
async def test_echo_and_half_close(tmp_path: Path, at: int, to: int) -> None:
    async with loopback_mesh(tmp_path) as mesh:
        await mesh.serve(to, echo)
        for size in (1, 100_000, 3_000_000):
            data = random.randbytes(size)
            # The answer's end arrives only because ours did, and all of the answer comes after it.
            assert await exchange(mesh.via(at, to), data) == data


@pytest.mark.parametrize(("at", "to"), WAYS)
async def test_server_first_bytes_are_never_lost(tmp_path: Path, at: int, to: int) -> None:
    async with loopback_mesh(tmp_path) as mesh:
        await mesh.serve(to, greet)

        async def once() -> bytes:
            reader, writer = await asyncio.open_connection(*mesh.via(at, to))
            greeting = await reader.read()
            writer.close()
            return greeting

        for _ in range(4):
            assert await asyncio.gather(*(once() for _ in range(50))) == [b"hello from the server"] * 50


@pytest.mark.parametrize(("at", "to"), WAYS)
async def test_half_close_the_other_way(tmp_path: Path, at: int, to: int) -> None:
    """The server ends first, the client goes on talking."""
    received: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write_eof()
        received.set_result(await reader.read())

    async with loopback_mesh(tmp_path) as mesh:
        await mesh.serve(to, listen)
        reader, writer = await asyncio.open_connection(*mesh.via(at, to))
        assert await reader.read() == b""
        writer.write(b"still here")
        writer.write_eof()
        assert await received == b"still here"
        writer.close()


@pytest.mark.parametrize(("at", "to"), WAYS)
async def test_stalled_consumer_loses_nothing_and_costs_little(tmp_path: Path, at: int, to: int) -> None:
    data = random.randbytes(50_000_000)
    go = asyncio.Event()

    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go.wait()
        await digest(reader, writer)

    async with loopback_mesh(tmp_path) as mesh:
        await mesh.serve(to, stall)
        reader, writer = await asyncio.open_connection(*mesh.via(at, to))
        before = _resident()
        drained = asyncio.create_task(_feed(writer, data))
        # Until nothing moves any more: every buffer on the way is full.
        await _still(mesh)
        assert not drained.done()
        # All the ends share this process.
        assert _resident() - before < 24_000_000
        go.set()
        await drained
        writer.write_eof()
        assert await reader.read() == hashlib.sha256(data).digest()
        writer.close()


async def test_slow_reader_gets_the_tail_after_the_sender_has_left(tmp_path: Path) -> None:
    """Everything is sent and both halves are ended while megabytes are still on their way."""
    data = random.randbytes(30_000_000)
    go = asyncio.Event()
    result: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write_eof()
        await go.wait()
        result.set_result(hashlib.sha256(await reader.read()).digest())

    async with loopback_mesh(tmp_path) as mesh:
        await mesh.serve(1, stall)
        reader, writer = await asyncio.open_connection(*mesh.via(2, 1))
        writer.write(data)
        writer.write_eof()
        assert await reader.read() == b""
        # Longer than a closing TLS connection is given for what it still holds.
        await asyncio.sleep(6)
        go.set()
        assert await result == hashlib.sha256(data).digest()
        writer.close()


@pytest.mark.parametrize(("at", "to"), WAYS)
async def test_a_reset_arrives_as_a_reset(tmp_path: Path, at: int, to: int) -> None:
    """A server that is killed in the middle must not look like one that has finished."""
    started: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()

    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"half a sentence")
        started.set_result(writer)
        await reader.read()

    async with loopback_mesh(tmp_path) as mesh:
        await mesh.serve(to, die)
        reader, writer = await asyncio.open_connection(*mesh.via(at, to))
        assert await reader.readexactly(15) == b"half a sentence"
        mesh.nodes[max(at, to)].running.cancel()
        with pytest.raises(ConnectionError):
            await reader.read()
        writer.close()


async def test_nobody_on_the_port(tmp_path: Path) -> None:
    async with loopback_mesh(tmp_path) as mesh:
        for at, to in WAYS:
            with pytest.raises(ConnectionError):
                await exchange(mesh.via(at, to), b"anybody?")
        assert mesh.hub.stats().refused["nobody_there"] == len(WAYS)


async def test_many_flows_at_once_leave_nothing_behind(tmp_path: Path) -> None:
    async with loopback_mesh(tmp_path) as mesh:
        for number in (1, 2, 3):
            await mesh.serve(number, echo)
        await exchange(mesh.via(2, 1), b"warm")
        await _quiet(mesh)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            sent = [random.randbytes(random.randrange(200_000)) for _ in range(40)]
            ways = [random.choice([*WAYS, (1, 3), (3, 1)]) for _ in sent]
            got = await asyncio.gather(*(exchange(mesh.via(*way), data) for way, data in zip(ways, sent, strict=True)))
            assert got == sent
        await _quiet(mesh)
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before)
        now = mesh.hub.stats()
        assert (now.flows_open, now.dead, dict(now.refused)) == (0, 0, {})
        assert now.flows_total > 120


async def test_clients_that_leave_before_the_other_end_is_found(tmp_path: Path) -> None:
    """Node 3 is enrolled but away: flows to it wait, and go with their clients."""
    async with loopback_mesh(tmp_path, nodes=1) as mesh:
        away = await mesh.enrol()
        await until(lambda: away.slot in {node.slot for node in mesh.hub.stats().nodes})
        writers = []
        for _ in range(20):
            _, writer = await asyncio.open_connection(*mesh.via(1, away.slot))
            writer.write(b"early")
            writers.append(writer)
        for writer in writers:
            # Not ``abort``: without unread data that is an orderly end, whose sender may well await an answer.
            sockets.reset(cast("asyncio.Transport", writer.transport))
        await _quiet(mesh)
        # Whoever is patient gets through once it is there.
        await mesh.serve(away.slot, echo)
        waiting = asyncio.create_task(exchange(mesh.via(1, away.slot), b"patience"))
        await mesh.start(away)
        assert await waiting == b"patience"


async def test_port_that_is_taken_is_left_out(tmp_path: Path) -> None:
    async with loopback_mesh(tmp_path, nodes=1) as mesh:
        taken = await asyncio.start_server(echo, "127.78.3.1", HEAD.gcs)
        node = await mesh.start(await mesh.enrol())
        assert node.agent.slot == slot(3)
        assert node.agent.stats().ports_missing == 1
        await mesh.serve(1, echo)
        assert await exchange(mesh.via(3, 1), b"fine") == b"fine"
        taken.close()


async def test_what_the_head_tells_is_read_from_no_socket(tmp_path: Path) -> None:
    """And by nobody who only has a way to the node's listeners."""
    text = b"for nodes alone " * 1000
    async with loopback_mesh(tmp_path, fixed_answers={HEAD.briefing: text}) as mesh:
        assert await mesh.nodes[2].agent.read(HEAD.briefing) == text
        with pytest.raises(ConnectionError):
            # Nothing is told there.
            await mesh.nodes[2].agent.read(HEAD.briefing + 1)
        for address in (HEAD.address, "127.78.2.1"):
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(address, HEAD.briefing)
        await mesh.revoke(2)
        with pytest.raises((ConnectionError, TimeoutError)):
            async with asyncio.timeout(1):
                await mesh.nodes[2].agent.read(HEAD.briefing)


async def test_who_tells_the_head_too_much_where_it_only_tells_is_cut_off(tmp_path: Path) -> None:
    async with loopback_mesh(tmp_path, fixed_answers={HEAD.briefing: b"enough"}) as mesh:
        key = mesh.nodes[2].credentials.key
        reader, writer = await asyncio.open_connection("127.0.0.1", mesh.hub.port, ssl=client_context())
        writer.write(encode(Open(2, key, 1, HEAD.briefing)) + (PIECE.pack(60_000) + bytes(60_000)) * 10)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1000)
        writer.transport.abort()


async def test_traffic_is_counted_and_reported(tmp_path: Path) -> None:
    async with loopback_mesh(tmp_path) as mesh:
        await mesh.serve(1, echo)
        await exchange(mesh.via(2, 1), bytes(100_000))
        await _quiet(mesh)
        (two, three) = mesh.hub.stats().nodes
        assert (two.connected, three.connected) == (True, True)
        assert 100_000 < two.bytes_in < 110_000
        assert 100_000 < two.bytes_out < 110_000
        assert (three.bytes_in, three.bytes_out) == (0, 0)
        await until(lambda: mesh.registry._nodes[2].bytes_in == two.bytes_in)  # type: ignore[attr-defined]
        assert mesh.registry._nodes[2].last_seen_at is not None  # type: ignore[attr-defined]


async def _feed(writer: asyncio.StreamWriter, data: bytes) -> None:
    for start in range(0, len(data), 65536):
        writer.write(data[start : start + 65536])
        await writer.drain()


async def _quiet(mesh: LoopbackMesh) -> None:
    """Until no flow is left anywhere."""
    ends: list[Hub | Agent] = [mesh.hub, *(node.agent for node in mesh.nodes.values())]
    await until(lambda: not any(end.stats().flows_open for end in ends))


async def _still(mesh: LoopbackMesh) -> None:
    """Until nothing has moved for half a second."""
    moved = -1
    while moved != (moved := mesh.hub.stats().bytes_in):  # noqa: ASYNC110 - nothing tells of a standstill
        await asyncio.sleep(0.5)


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


assert block(slot(2))[OFFSET] in slot(2).forwarded
