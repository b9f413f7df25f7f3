"""Clients that mean no good: bodies without a key, and requests that are never finished."""

import asyncio
import contextlib
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

_PIECE = b"[]," * 21845


@dataclass(frozen=True)
class Refusal:
    """How the server ended a large upload."""

    status: int
    #: Bytes that it took in, as far as the sender can tell.
    sent: int
    #: Seconds until the answer began.
    seconds: float


def send_body(url: str, path: str, size: int, headers: Sequence[str] = ()) -> Refusal:
    """POST ``size`` bytes of JSON as fast as they are taken, and read the answer, whenever it comes."""
    where = urlsplit(url)
    begun = time.monotonic()
    with socket.create_connection((where.hostname, where.port), timeout=60) as peer:
        head = [
            f"POST {path} HTTP/1.1",
            "host: x",
            "content-type: application/json",
            f"content-length: {size}",
            *headers,
        ]
        peer.setblocking(False)
        unsent, sent, answer = memoryview("\r\n".join([*head, "", ""]).encode()), 0, b""
        while b"\r\n" not in answer:
            readable, writable, _ = select.select([peer], [peer] if unsent else [], [], 60)
            if not readable and not writable:
                raise TimeoutError("no answer within a minute")
            if writable:
                try:
                    count = peer.send(unsent)
                except ConnectionError:
                    # It takes no more; what it said before that can be read all the same.
                    unsent = memoryview(b"")
                else:
                    sent += count
                    unsent = unsent[count:] or memoryview(_PIECE if sent < size else b"")
            if readable and not (piece := peer.recv(4096)):
                raise ConnectionError("closed without an answer")
            answer += piece if readable else b""
    return Refusal(int(answer.split()[1]), sent, time.monotonic() - begun)


async def hold(host: str, port: int, beginnings: Sequence[bytes]) -> None:
    """Keep one connection per beginning, each with so much of a request sent, for ever: who is cut comes back.

    Prints a line when all have been there once.
    """
    missing = len(beginnings)

    async def one(beginning: bytes) -> None:
        nonlocal missing
        first = True
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(host, port)
                try:
                    writer.write(beginning)
                    await writer.drain()
                    if first:
                        first = False
                        missing -= 1
                        if not missing:
                            print("held", flush=True)
                    while await reader.read(4096):
                        pass
                finally:
                    writer.close()
            await asyncio.sleep(0.1)

    async with asyncio.TaskGroup() as group:
        for beginning in beginnings:
            group.create_task(one(beginning))


@contextlib.contextmanager
def held(url: str, count: int, keyed: int, key: str) -> Iterator[None]:
    """While the body runs, a process holds ``count`` half-sent requests, ``keyed`` of them with the key."""
    where = urlsplit(url)
    command = [sys.executable, __file__, str(where.hostname), str(where.port), str(count), str(keyed), key]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        yield
    finally:
        holder.kill()
        holder.communicate()


def beginnings(count: int, keyed: int, key: str) -> list[bytes]:
    """``count`` requests that are half sent, ``keyed`` of them with a valid key and a body that does not come."""
    half_head = b"POST /api/v1/generate HTTP/1.1\r\nhost: x\r\nconte"
    unkeyed = b"GET /health HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{"
    with_key = (
        f"POST /api/v1/generate HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
        "content-type: application/json\r\ncontent-length: 1000\r\n\r\n{"
    ).encode()
    others = count - keyed
    return [half_head] * (others // 2) + [unkeyed] * (others - others // 2) + [with_key] * keyed


if __name__ == "__main__":
    # In a process of its own: HOST PORT COUNT KEYED KEY
    asyncio.run(hold(sys.argv[1], int(sys.argv[2]), beginnings(int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])))
