"""Servers that cost more than they are worth: each is cut, says why, and leaves time for everybody else."""

# ruff: noqa: ASYNC240 - a test has nobody to block

import asyncio
import errno
import socket
import time
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from serve_app.outbound.addresses import Address
from serve_app.outbound.base import OutboundError
from serve_app.outbound.client import SafeClient
from serve_app.outbound.connection import Streams
from serve_app.outbound.limits import Limits
from tests.fakes.http_source import Answer, HttpSource, Seen, endless, raw, reply, stalled

LOOPBACK = (ip_network("127.0.0.0/8"),)
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"


def repeated(piece: bytes, head: bytes = b"") -> Answer:
    """The same bytes for ever, as fast as they are taken."""

    async def answer(_: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(piece * (65_536 // len(piece)))
            await writer.drain()

    return answer


def dripping(piece: bytes, pause_s: float, head: bytes = b"") -> Answer:
    """The same bytes for ever, with pauses."""

    async def answer(_: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return answer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


@pytest.fixture
async def client() -> AsyncIterator[SafeClient]:
    """Quick where only the other side's time matters; how much of ours they may take is as in production."""
    limits = Limits(read_s=5, head_s=2, total_s=20, post_s=5, reply_s=0.3, window_s=0.5, window_bytes=5000)
    async with SafeClient(LOOPBACK, limits) as client:
        yield client


async def refusal(client: SafeClient, answer: Answer, path: Path) -> OutboundError:
    async with HttpSource({"/a": answer}) as source, asyncio.timeout(15):
        with pytest.raises(OutboundError) as caught:
            await client.download(source.url("/a"), path, 2**40)
    assert not path.exists()
    return caught.value


async def test_a_body_in_crumbs_is_refused(client: SafeClient, path: Path) -> None:
    """Each chunk is an event of its own: 10 000 of one byte in 64 KiB."""
    error = await refusal(client, repeated(b"1\r\nx\r\n", CHUNKED), path)
    assert (error.reason, error.transient) == ("rejected", False)
    assert "pieces of a few bytes" in error.message


class Crumbs(asyncio.StreamReader):
    """50 bytes at a time, however long they are waited for."""

    async def read(self, n: int = -1) -> bytes:
        return await super().read(50)


async def test_a_body_in_crumbs_of_a_known_length_is_refused(client: SafeClient, path: Path) -> None:
    dial = client._connector._dial

    async def crumbling(*arguments: Any) -> Streams:
        reader, writer = await dial(*arguments)
        crumbs = Crumbs(limit=2**20)
        crumbs.feed_data(await reader.readexactly(len(LONG) + 100_000))
        return crumbs, writer

    client._connector._dial = crumbling
    # It speaks first, so that all of it is there.
    async with await asyncio.start_server(speak(LONG + b"x" * 100_000), "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(OutboundError) as caught:
            await client.download(f"http://127.0.0.1:{port}/", path, 2**40)
    assert (caught.value.reason, caught.value.transient) == ("rejected", False)


def speak(data: bytes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
    return lambda _, writer: writer.write(data)


async def test_endless_informational_answers_are_refused(client: SafeClient, path: Path) -> None:
    error = await refusal(client, repeated(b"HTTP/1.1 100 Continue\r\n\r\n"), path)
    assert (error.reason, error.transient) == ("rejected", False)


async def test_a_few_informational_answers_are_ordinary(client: SafeClient, path: Path) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n" * 3
    async with HttpSource({"/a": raw(hints + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")}) as source:
        assert await client.download(source.url("/a"), path, 2) == 2


async def test_a_head_that_drips_ends(client: SafeClient, path: Path) -> None:
    error = await refusal(client, dripping(b"a: b\r\n", 0.01, b"HTTP/1.1 200 OK\r\n"), path)
    assert (error.reason, error.transient) == ("unreachable", True)


async def test_a_trailer_that_drips_ends(client: SafeClient, path: Path) -> None:
    """No byte of a body comes in, so the rate is none."""
    error = await refusal(client, dripping(b"a: b\r\n", 0.01, CHUNKED + b"1\r\nx\r\n0\r\n"), path)
    assert (error.reason, error.transient) == ("unreachable", True)


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nx: ", CHUNKED + b"1;"])
async def test_an_endless_line_ends(client: SafeClient, path: Path, head: bytes) -> None:
    error = await refusal(client, repeated(b"x", head), path)
    assert (error.reason, error.transient) == ("unreachable", True)


async def test_a_slow_source_is_cut(client: SafeClient, path: Path) -> None:
    error = await refusal(client, dripping(b"x" * 300, 0.1, LONG), path)
    assert (error.reason, error.transient) == ("unreachable", True)
    assert "10 kB/s" in error.message


async def test_a_source_that_begins_fast_and_turns_slow_is_cut(client: SafeClient, path: Path) -> None:
    error = await refusal(client, dripping(b"x" * 300, 0.1, LONG + b"x" * 300_000), path)
    assert "kB/s" in error.message


async def test_a_slow_but_steady_source_passes(path: Path) -> None:
    """Like a phone on a poor connection: whole packets, for three windows."""
    body = b"x" * 30_000

    async def phone(_: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        for at in range(0, len(body), 1000):
            writer.write(body[at : at + 1000])
            await writer.drain()
            await asyncio.sleep(0.05)

    # A tenth of what it sends is asked for: this loop may stand still for a while, and it's the server's as well.
    limits = Limits(window_s=0.5, window_bytes=1000)
    async with HttpSource({"/a": phone}) as source, SafeClient(LOOPBACK, limits) as client:
        assert await client.download(source.url("/a"), path, len(body)) == len(body)


async def test_a_small_file_may_come_slowly(client: SafeClient, path: Path) -> None:
    """It has come to its end before its rate is of interest."""

    async def slowly(_: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for piece in (b"fi", b"le", b""):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.24)

    async with HttpSource({"/a": slowly}) as source:
        assert await client.download(source.url("/a"), path, 4) == 4


async def test_pieces_as_small_as_allowed_have_to_wait(path: Path) -> None:
    """Without it, eight sources that send them would take a whole process, for as long as they like."""
    body = (b"100\r\n" + b"x" * 256 + b"\r\n") * 5000
    async with HttpSource({"/a": raw(CHUNKED + body + b"0\r\n\r\n")}) as source, SafeClient(LOOPBACK) as client:
        begun = time.perf_counter()
        assert await client.download(source.url("/a"), path, 2**40) == 256 * 5000
        assert time.perf_counter() - begun > 0.9 * 5000 / Limits().steps_per_s


async def test_a_chunk_header_that_drips_fast_costs_little(path: Path) -> None:
    """No piece comes of it for 64 KiB, but each of its bytes is a read, as fast as we can."""

    async def answer(_: Seen, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        writer.write(CHUNKED + b"100;")
        while True:
            writer.write(b"x")
            await asyncio.sleep(0)

    async with HttpSource({"/a": answer}) as source, SafeClient(LOOPBACK, Limits(total_s=1)) as client:
        reads = 0
        streams = client._connector._dial

        async def counting(*arguments: Any) -> Streams:
            reader, writer = await streams(*arguments)
            read = reader.read

            async def counted(size: int) -> bytes:
                nonlocal reads
                reads += 1
                return await read(size)

            reader.read = counted  # type: ignore[method-assign]
            return reader, writer

        client._connector._dial = counting
        # A fast machine has sent the 64 KiB, which no header may exceed, before the second is over.
        begun = time.perf_counter()
        with pytest.raises(OutboundError, match=r"1 s in all|broke off"):
            await client.download(source.url("/a"), path, 2**40)
        # More than that second if the machine is busy.
        took_s = time.perf_counter() - begun
    assert reads < Limits().steps_per_s * 1.2 * max(1, took_s)


async def test_large_pieces_are_not_slowed_down(path: Path) -> None:
    body = b"x" * 64 * 2**20
    async with HttpSource({"/a": reply(200, body)}) as source, SafeClient(LOOPBACK) as client:
        # At the pace of the smallest pieces it would be 100 s.
        async with asyncio.timeout(60):
            await client.download(source.url("/a"), path, len(body))


async def test_only_some_of_thousands_of_addresses_are_knocked_at(path: Path) -> None:
    knocked = []

    async def dial(address: str, *_: object) -> None:
        knocked.append(address)
        raise ConnectionRefusedError

    async def names(host: str, owner: str) -> list[Address]:
        return [ip_address(f"93.184.{n // 250}.{n % 250 + 1}") for n in range(3000)]

    async with SafeClient(resolve=names, dial=dial) as client:  # type: ignore[arg-type]
        with pytest.raises(OutboundError):
            await client.download("http://many.example/", path, 1)
    assert len(knocked) == 8


async def test_one_private_address_behind_many_public_ones_is_found(path: Path) -> None:
    async def names(host: str, owner: str) -> list[Address]:
        return [ip_address(f"93.184.216.{n + 1}") for n in range(200)] + [ip_address("10.0.0.1")]

    async with SafeClient(resolve=names) as client:
        with pytest.raises(OutboundError) as caught:
            await client.download("http://many.example/", path, 1)
    assert caught.value.reason == "forbidden"


@pytest.mark.parametrize("port", [22, 25, 81, 1023])
async def test_ports_of_other_services_are_closed(path: Path, port: int) -> None:
    async def names(host: str, owner: str) -> list[Address]:
        return [ip_address("93.184.216.1")]

    async with SafeClient(resolve=names) as client:
        for act in (
            client.download(f"http://a.example:{port}/", path, 1),
            client.post(f"http://a.example:{port}/", "", {}),
        ):
            with pytest.raises(OutboundError) as caught:
                await act
            assert (caught.value.reason, "closed port" in caught.value.message) == ("forbidden", True)


# Webhooks


@pytest.mark.parametrize(
    "answer",
    [
        dripping(b"x", 0.05, LONG),
        dripping(b"1\r\nx\r\n", 0.05, CHUNKED),
        stalled(LONG),
        endless(),
        repeated(b"1\r\nx\r\n", CHUNKED),
        raw(LONG + b"cut off"),
        raw(CHUNKED + b"zz\r\n"),
    ],
)
async def test_a_post_counts_by_its_status_line(answer: Answer) -> None:
    """Whatever becomes of the body, the receiver has said yes."""
    limits = Limits(post_s=100, reply_s=0.3)
    async with HttpSource({"/hook": answer}) as source, SafeClient(LOOPBACK, limits) as client, asyncio.timeout(30):
        found = await client.post(source.url("/hook"), "{}", {})
    assert found.status == 200
    assert len(found.text) <= 2048


async def test_a_post_that_gets_no_status_ends(client: SafeClient) -> None:
    async with HttpSource({"/hook": repeated(b"HTTP/1.1 100 Continue\r\n\r\n")}) as source:
        with pytest.raises(OutboundError, match="about to answer"):
            await client.post(source.url("/hook"), "{}", {})


# Our disk


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
async def test_a_disk_without_room_is_told_from_a_bad_source(path: Path, head: bytes) -> None:
    """Before anything is written that would take the last of it."""
    source = HttpSource({"/a": raw(head + b"x" * 1_000_000)})
    async with source, SafeClient(LOOPBACK, Limits(reserve=2**60)) as client:
        with pytest.raises(OSError, match="MiB are free") as caught:
            await client.download(source.url("/a"), path, 2**30)
    assert caught.value.errno == errno.ENOSPC
    assert not path.exists()


async def test_a_disk_that_fills_up_while_writing(client: SafeClient, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.symlink_to("/dev/full")
    async with HttpSource({"/a": reply(200, b"x" * 3_000_000)}) as source:
        with pytest.raises(OSError, match="No space left") as caught:
            await client.download(source.url("/a"), path, 2**30)
    assert caught.value.errno == errno.ENOSPC
    assert not path.is_symlink()
