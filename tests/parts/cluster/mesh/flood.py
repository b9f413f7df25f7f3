"""Somebody at the hub's port who means no good, a program: ``python -m tests.parts.cluster.mesh.flood …``.

``joins PORT COUNT SECRET``: so many TLS connections that ask to join, by turns with this token's secret and with one
that is made up. ``silence PORT RATE``: so many TCP connections a second that say nothing, or one byte, by turns. He
holds what he gets until his input ends; ``ready`` says that all of it is under way.
"""

import asyncio
import contextlib
import os
import sys
import time

from cluster.mesh.invitation import client_context
from cluster.mesh.sockets import raise_file_limit
from cluster.mesh.wire import Join, encode

#: Handshakes under way at a time.
_AT_ONCE = 100


async def joins(port: int, count: int, secret: str) -> None:
    room = asyncio.Semaphore(_AT_ONCE)
    context = client_context()
    held: list[asyncio.StreamWriter] = []

    async def one(number: int) -> None:
        async with room:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
                shown = bytes.fromhex(secret) if number % 2 else os.urandom(32)
                writer.write(encode(Join(shown, os.urandom(32), "x")))
                held.append(writer)

    await asyncio.gather(*(one(number) for number in range(count)))
    print("ready", flush=True)
    await _until_input_ends()


async def silence(port: int, rate: int) -> None:
    ending = asyncio.create_task(_until_input_ends())
    held: list[asyncio.StreamWriter] = []
    begun, made = time.monotonic(), 0
    while not ending.done():
        while made < (time.monotonic() - begun) * rate:
            with contextlib.suppress(OSError):
                held.append((await asyncio.open_connection("127.0.0.1", port))[1])
                held[-1].write(b"\x16" if made % 2 else b"")
            made += 1
            if made == rate:
                print("ready", flush=True)
        # Those that the hub has hung up on.
        while held and held[0].transport.is_closing():
            held.pop(0)
        await asyncio.sleep(0.001)


async def _until_input_ends() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


if __name__ == "__main__":
    raise_file_limit()
    verb, where, how_many, *rest = sys.argv[1:]
    asyncio.run(joins(int(where), int(how_many), rest[0]) if verb == "joins" else silence(int(where), int(how_many)))
